"""Attentions from other packages: `--attention NAME` in every task, table and chart, without any change here.

An entry point of the attention's name in the group `dmabench.attentions` loads to the class of its layer, an nn.Module
made from a ModelConfig (tasks/attention/__init__.py says what it has; a subclass of base.GroupedAttention has most of
it). A class whose queries attend to at most `config.window` keys says `windowed = True`: then --window is an option of
it, and its density is counted.
"""

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINTS = "dmabench.attentions"
NEEDED = ("forward", "new_state", "rotary_dims")


@cache
def names() -> tuple[str, ...]:
    """Of those that are installed, each once. Imports none."""
    return tuple(dict.fromkeys(entry.name for entry in _entries()))


@cache
def load(name: str) -> "type[nn.Module]":
    """The class of the attention of that name.

    Raises:
        ValueError: there is none or there are several, it cannot be imported, or it is no attention.
    """
    found = [entry for entry in _entries() if entry.name == name]
    if len(found) != 1:
        packages = " and ".join(map(_where, found)) or "no package"
        raise ValueError(f"the attention {name!r} is registered by {packages}: it must be by one")
    where = f"the entry point {name!r} in {ENTRY_POINTS}, of {_where(found[0])},"
    try:
        loaded: Any = found[0].load()
    except Exception as error:  # whatever another package raises when it is imported
        raise ValueError(f"{where} cannot be loaded ({type(error).__name__}: {error})") from error
    missing = [one for one in NEEDED if not callable(getattr(loaded, one, None))]
    if not isinstance(loaded, type) or missing:
        raise ValueError(
            f"{where} must load to the class of a layer; {loaded!r} has no {', '.join(missing) or 'class'}"
        )
    return loaded


@cache
def is_sound(name: str) -> bool:
    """Whether it can be loaded; a broken one is warned about, once."""
    try:
        return load(name) is not None
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return False


def is_windowed(name: str) -> bool:
    """Whether it attends to at most `window` keys; False for a broken one."""
    return is_sound(name) and bool(getattr(load(name), "windowed", False))


def _entries() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)


def _where(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "another package"
