"""The user's cache of tuned configurations: what `dmabench tune` measured on this machine, and later calls take.

One JSON file, `triton-configs.json` in DMABENCH_CACHE, else in dmabench/ of XDG_CACHE_HOME, else in ~/.cache/dmabench.
Entries are kept by device, version of triton, dtype, head dimension and the sources of the kernels: those of other
kernels or of another compiler decide nothing. Deleting the file undoes all tuning.
"""

import hashlib
import json
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

KERNELS = ("forward", "queries", "keys")
"""Fields of configs.Configs."""
_SOURCES = ("tiles.py", "forward.py", "backward_queries.py", "backward_keys.py")


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled. `block_m` divides 128, `block_n` divides 64, or 128 for the gradients of the keys;
    `heads` and `ahead` are of the other two, which read keys for a block of queries; `even` is of those gradients.

    Raises:
        ValueError: sizes that no kernel takes.
    """

    block_m: int
    """Query rows at a time, of each head."""
    block_n: int
    """Keys at a time."""
    warps: int
    stages: int
    heads: int = 1
    """Query heads of a group that one program takes, so that keys are gathered once for them."""
    ahead: bool = False
    """Where keys are gathered by list: whether their positions are read a step before their rows."""
    even: bool = False
    """For the gradients of keys: whether programs share the steps of all tiles evenly, rather than take a tile each."""

    def __post_init__(self) -> None:
        sizes = (self.block_m, self.block_n, self.warps, self.stages, self.heads)
        whole = all(type(size) is int and size > 0 for size in sizes) and type(self.ahead) is type(self.even) is bool
        if not whole or 128 % self.block_m or 128 % self.block_n or self.warps & (self.warps - 1) or self.warps > 32:
            raise ValueError(f"{self} is no configuration of these kernels")

    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch. Triton 3.10 will not fuse multiply and add unless it is asked to."""
        blocks = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}
        return blocks | {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def require_fit(kernel: str, config: Config) -> None:
    """ValueError where the kernel (one of KERNELS) does not take the configuration."""
    if kernel not in KERNELS:
        raise ValueError(f"{kernel} is none of {', '.join(KERNELS)}")
    if kernel == "keys":
        misfit = config.heads > 1 or config.ahead or (config.even and config.block_n < 64)
    else:
        misfit = config.even or bool(64 % config.block_n)
    if misfit:
        raise ValueError(f"{config} is no configuration of the kernel {kernel!r}")


class Key(NamedTuple):
    """What a winner holds for."""

    device: str
    triton: str
    dtype: str
    head_dim: int
    """As the kernels see it (configs.block_d)."""
    sources: str
    """Of the kernels: see `sources`."""


def path() -> Path:
    """The file, which need not exist."""
    own = os.environ.get("DMABENCH_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmabench"
    return root / "triton-configs.json"


@cache
def sources() -> str:
    """A digest of the kernels' source files."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def read(key: Key) -> dict[str, Config]:
    """The winners stored for `key`, by field of configs.Configs: none, some or all of them.

    A file that cannot be read is left out with a warning: a call works without it.
    """
    try:
        found = {
            entry["kernel"]: Config(**{field.name: entry[field.name] for field in fields(Config)})
            for entry in _entries()
            if all(entry[name] == value for name, value in key._asdict().items()) and entry["kernel"] in KERNELS
        }
        for kernel, config in found.items():
            require_fit(kernel, config)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"tuned configurations are left out, since {path().name} cannot be read ({type(error).__name__}: {error}); "
            "delete it, or run dmabench tune again",
            stacklevel=2,
        )
        return {}


def store(key: Key, winners: dict[str, Config], about: dict[str, Any]) -> Path:
    """Keep winners, in place of those stored for the same key and kernel; returns the file.

    Args:
        winners: by field of configs.Configs.
        about: what else the entry is to say (times, shape), for people.

    Raises:
        OSError: it cannot be written.
    """
    for kernel, config in winners.items():
        require_fit(kernel, config)
    try:
        entries = _entries()
    except ValueError:  # damaged: what it held is lost already
        entries = []
    names = {kernel: (*key, kernel) for kernel in winners}
    kept = [entry for entry in entries if _name(entry) not in names.values()]
    new = [{**key._asdict(), "kernel": kernel, **asdict(config), **about} for kernel, config in winners.items()]
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
        json.dump([*kept, *new], temporary, indent=1)
    os.replace(temporary.name, file)  # whole or not at all
    return file


def _entries() -> list[dict[str, Any]]:
    try:
        entries = json.loads(path().read_text())
    except FileNotFoundError:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is no list of entries")
    return entries


def _name(entry: dict[str, Any]) -> tuple:
    return (*(entry.get(field) for field in Key._fields), entry.get("kernel"))
