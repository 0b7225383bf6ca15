"""Which backend `backend="auto"` takes: the fastest of the nearest cell that was measured on such a device.

The cells are in measured.py, which `dmabench tune --from-rows` makes of committed rows. Where nothing was measured (a
device, float32), a fixed order decides. `explain` says which it was, and from which commit the times come.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dmabench.kernels import registry
from dmabench.kernels.registry import HALF, Problem

CANDIDATES = ("cuda", "triton", "flex")
"""What "auto" chooses among on a CUDA device; dma/reference, dense, where all of them refuse."""
_SOURCES = {"cuda": "dma_cuda", "triton": "dma_triton", "flex": "dma_flex.py"}
SUFFIXES = (".py", ".cu", ".cuh")
STALE = 3.0
"""Doublings by which a cell is further away whose kernels have changed since: it may say nothing of those of today."""


@dataclass(frozen=True)
class Cell:
    """What the backends of one run took for one shape, on the `iid` delta."""

    device: str
    capability: tuple[int, int] | None
    """Compute capability; None where it is not known, and then only devices of the same name are served."""
    backward: bool
    """Whether it is forward and backward together, as a call that will be differentiated pays, or forward alone."""
    dtype: str
    """As torch names it."""
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    seqlen: int
    window: int
    total_ms: tuple[tuple[str, float], ...]
    """(backend, total milliseconds), the fastest first; two of CANDIDATES at least."""
    run: str
    commit: str
    """Of the kernels that were timed."""

    def distance(self, problem: Problem, name: str) -> float:
        """How far the problem is, in doublings of its sizes."""
        pairs = (
            (self.seqlen, problem.key_len),
            (self.window, problem.window or problem.key_len),
            (self.head_dim, problem.head_dim),
            (self.heads // self.kv_heads, problem.groups),
            (self.batch * self.heads, problem.batch * problem.heads),
        )
        far = sum(abs(math.log2(mine / theirs)) for mine, theirs in pairs if mine > 0 and theirs > 0)
        # A tie between cells goes to the one of this very device and dtype.
        return far + 0.1 * (self.device != name) + 0.1 * (self.dtype != _word(problem.dtype))


@dataclass(frozen=True)
class Choice:
    """A backend's name, and what spoke for it."""

    name: str
    cell: Cell | None
    """None where the fixed order decided."""
    why: str
    """A sentence without the age of the cell: see `explain`."""


Device = tuple[str, tuple[int, int]]


def fastest(problem: Problem, device: Device | None, cells: Sequence[Cell] | None = None) -> Choice:
    """The backend that is fastest for the problem, of those that do not refuse it.

    Args:
        device: name and compute capability; None where the table is not to be asked.
        cells: in place of those of measured.py.
    """
    if problem.device == "cpu":
        return Choice("reference", None, "on a CPU: it has a backward and nothing to compile")
    if device is not None and problem.dtype in HALF:
        found = _nearest(problem, device, _committed() if cells is None else cells)
        if found is not None:
            return found
    # On the first H100 dma/cuda led forward and dma/triton backward (results/LOG.md, 2026-11-24).
    order = ("triton", "cuda", "flex") if problem.backward else ("cuda", "triton", "flex")
    name = next((name for name in order if _accepts(name, problem)), "reference")
    where = "on a device that is not known" if device is None else f"on {device[0]}"
    return Choice(name, None, f"the fixed order {', '.join(order)}: nothing like it was measured {where}")


def _accepts(name: str, problem: Problem) -> bool:
    return not registry.get(f"dma/{name}").refusal(problem)


def _nearest(problem: Problem, device: Device, cells: Sequence[Cell]) -> Choice | None:
    name, capability = device
    alike = [c for c in cells if c.backward == problem.backward and (c.device == name or c.capability == capability)]
    for cell in sorted(alike, key=lambda cell: cell.distance(problem, name) + STALE * bool(changed_since(cell))):
        for backend, _ in cell.total_ms:
            if _accepts(backend, problem):
                return Choice(backend, cell, _told(cell, problem, name))
    return None


def _told(cell: Cell, problem: Problem, name: str) -> str:
    times = ", ".join(f"{backend} {ms:.3g} ms" for backend, ms in cell.total_ms)
    what = "forward and backward" if cell.backward else "forward"
    shape = f"T={cell.seqlen} w={cell.window} H={cell.heads} G={cell.kv_heads} D={cell.head_dim} {cell.dtype}"
    far = cell.distance(problem, name)
    near = "this cell" if far == 0 else f"the nearest cell measured, {far:.1f} doublings away"
    return f"{times} for {what} at {shape} on {cell.device}, {near}"


def explain(choice: Choice) -> str:
    """Why, in one sentence; with the commit that was timed, and whether its kernels have changed since."""
    told = f"dma/{choice.name}: {choice.why}"
    if choice.cell is None:
        return told
    changed = changed_since(choice.cell)
    since = f"; changed since: {', '.join(f'dma/{name}' for name in changed)}" if changed else ""
    return f"{told} (commit {choice.cell.commit}{since})"


def changed_since(cell: Cell) -> list[str]:
    """The backends of a cell whose sources are not those that were timed, or may not be."""
    from dmabench.kernels.measured import SOURCES

    then = SOURCES.get(cell.commit, {})
    return [name for name, _ in cell.total_ms if then.get(name) != sources(name)]


@cache
def sources(backend: str) -> str:
    """A digest of a backend's own source files as they are now. What it shares with others (the plan) is not in it."""
    root = Path(__file__).parent
    path = root / _SOURCES[backend]
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.suffix in SUFFIXES]
    return digest({str(one.relative_to(root)): _blob(one.read_bytes()) for one in files})


def source_path(backend: str) -> str:
    """Where a backend's own sources are, below the folder of this module."""
    return _SOURCES[backend]


def digest(blobs: dict[str, str]) -> str:
    """Of files by their names and git's hashes of them: the same from a checkout, from history, and installed."""
    return hashlib.sha256(repr(sorted(blobs.items())).encode()).hexdigest()[:12]


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@cache
def device_class(device: torch.device) -> Device | None:
    """Name and compute capability of a CUDA device; None where there is none (a fake tensor of another machine's)."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def _committed() -> Sequence[Cell]:
    from dmabench.kernels.measured import CELLS

    return CELLS


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
