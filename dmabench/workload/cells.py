"""Cells: one backend at one setting is one cell, one row, one thing that can fail by itself. No torch here."""

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from dmabench.errors import Refusal
from dmabench.workload.sweeps import parse_sweep

PASSES = ("fwd", "bwd", "fwd+bwd", "decode")
LEVELS = ("kernel", "layer")
DTYPES = ("fp32", "fp16", "bf16")
DELTAS = ("iid", "rising", "falling", "clustered", "ar1", "sawtooth", "constant")


def delta_place(name: str | None) -> tuple[int, str]:
    """For sorting: as DELTAS has them, then others by name."""
    return (DELTAS.index(name) if name in DELTAS else len(DELTAS), str(name))


@dataclass(frozen=True)
class Shape:
    """What every backend of a comparison shares."""

    pass_: str
    level: str
    seqlen: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    seed: int
    device: str

    @property
    def key_len(self) -> int:
        """Keys there are: one more than the tokens seen where a new one is decoded."""
        return self.seqlen + (self.pass_ == "decode")


@dataclass(frozen=True)
class Cell:
    """One backend at one shape. window is None for dense and latent attention, and for native sparse attention with
    the paper's settings; delta is None for all but dma."""

    function: str
    backend: str
    shape: Shape
    window: int | None
    delta: str | None

    @property
    def name(self) -> str:
        return f"{self.function}/{self.backend}"

    def settings(self) -> dict[str, Any]:
        """Flat, in the words of the row schema."""
        shape = asdict(self.shape)
        return {
            "function": self.function,
            "backend": self.backend,
            "pass": shape.pop("pass_"),
            "window": self.window,
            "delta": self.delta,
            **shape,
        }

    @property
    def id(self) -> str:
        """Hash of the settings: what a resumed run recognises finished cells by."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:12]

    @staticmethod
    def from_settings(settings: dict[str, Any]) -> "Cell":
        rest = dict(settings)
        own = {name: rest.pop(name) for name in ("function", "backend", "window", "delta")}
        return Cell(shape=Shape(pass_=rest.pop("pass"), **rest), **own)


def make_cells(settings: dict[str, str], known: Iterable[str], device: str, seed: int, dense: bool) -> list[Cell]:
    """All cells of one block of settings (texts as on the command line).

    Args:
        known: ids of all backends.
        dense: add the dense backends that `speedup` needs when the pattern leaves them all out.

    Raises:
        Refusal: an unknown word, an impossible sweep, or heads that do not divide.
    """
    known = list(known)
    names = select_backends(settings["backend"], known)
    if dense and not any(name.startswith("dense/") for name in names):
        # cuDNN has no CPU kernels: a row that only says so would be noise that nobody asked for.
        never = ("dense/sdpa-cudnn",) if device == "cpu" else ()
        names += [name for name in known if name.startswith("dense/sdpa-") and name not in never]
    windows = parse_sweep(settings["window"], "--window")
    deltas = delta_words(settings["delta"])
    axes = (
        _words(settings["pass"], "--pass", PASSES),
        _words(settings["level"], "--level", LEVELS),
        parse_sweep(settings["seqlen"], "--seqlen"),
        parse_sweep(settings["batch"], "--batch"),
        parse_sweep(settings["heads"], "--heads"),
        parse_sweep(settings["kv_heads"], "--kv-heads"),
        parse_sweep(settings["head_dim"], "--head-dim"),
        _words(settings["dtype"], "--dtype", DTYPES),
    )
    cells = []
    for values in itertools.product(*axes):
        shape = Shape(*values, seed=seed, device=device)
        if shape.heads % shape.kv_heads:
            divisors = [str(n) for n in range(1, shape.heads + 1) if shape.heads % n == 0][:12]
            raise Refusal(
                f"--heads {shape.heads} is not a multiple of --kv-heads {shape.kv_heads}: query heads share "
                f"key/value heads evenly; --kv-heads may be {', '.join(divisors)}"
            )
        if not 16 <= shape.head_dim <= 256:
            raise Refusal(f"--head-dim {shape.head_dim} is outside 16..256, which is what the backends are built for")
        for name in names:
            function, backend = name.split("/", 1)
            cell = Cell(function, backend, shape, None, None)
            for window in _windows(function, windows):
                for delta in deltas if function == "dma" else [None]:
                    cells.append(replace(cell, window=window, delta=delta))
    return cells


def _windows(function: str, windows: list[int]) -> list[int | None]:
    """Those that the function has. Native sparse attention reads as many keys as the others with each window, and is
    measured with the paper's settings besides."""
    if function in ("dense", "mla"):
        return [None]
    return [*windows, None] if function == "nsa" else list(windows)


def select_backends(patterns: str, known: list[str]) -> list[str]:
    """Ids matching comma-separated globs, in the order of `known`; a bare name matches any function's backend.

    Raises:
        Refusal: a pattern that matches nothing; the nearest name is offered.
    """
    chosen: set[str] = set()
    for pattern in (p.strip() for p in patterns.split(",")):
        wanted = pattern if "/" in pattern or "*" in pattern or "?" in pattern else f"*/{pattern}"
        found = fnmatch.filter(known, wanted) or fnmatch.filter(known, f"{pattern}/*")
        if not found:
            names = known + [name.split("/", 1)[1] for name in known]
            near = get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise Refusal(f"--backend {pattern!r} matches no backend; {hint}known are {', '.join(known)}")
        chosen.update(found)
    return [name for name in known if name in chosen]


def delta_words(text: str) -> list[str]:
    """Distributions and labels of files and models; Refusal for an unknown one."""
    return _words(text, "--delta", DELTAS, also=("file:", "model:"))


def _words(text: str, option: str, known: tuple[str, ...], also: tuple[str, ...] = ()) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known and not word.startswith(also):
            near = get_close_matches(word, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            extra = "".join(f", {prefix}PATH" for prefix in also)
            raise Refusal(f"{option} {word!r} is unknown; choose from {', '.join(known)}{extra}{hint}")
    return list(dict.fromkeys(words))


def by_shape(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that are timed together, in the order of first appearance; duplicates are dropped."""
    groups: dict[Shape, dict[str, Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.shape, {})[cell.id] = cell
    return [list(group.values()) for group in groups.values()]
