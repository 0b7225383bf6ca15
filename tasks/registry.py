"""Every task by name: our own, then those from outside.

A task from outside registers through the entry-point group `dmabench.tasks`: an entry point of the task's name that
loads to its `Task`. Names and one line about each are known without importing any, since tasks import torch.
"""

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from dmabench.tasks.task import Task

ENTRY_POINTS = "dmabench.tasks"
OWN = {
    "mqar": "Recall values of keys seen among random tokens.",
    "needle": "Find needles in long haystacks, beyond the lengths of training too.",
    "patterns": "Copy, select and induce: the paper's three patterns of sparsity.",
    "train": "Train on text; perplexity and bits per byte on text that was held out.",
    "scaling": "Train models of several sizes; held-out loss over parameters and FLOPs, with fits.",
    "step": "Time training steps: tokens a second, memory, which share of them is attention.",
    "ablate": "Change one part of DMA at a time; scores, masks of heads, other attentions at test.",
}
"""Name and what `dmabench --help` says of it. The name is the module's, too, unless MODULES has another."""
MODULES = {"train": "language"}


def names() -> dict[str, str]:
    """Every task's name and a line about it, in the order of the tables. Imports no task."""
    found = dict(OWN)
    for entry in _outside():
        found.setdefault(entry.name, f"A task of {_where(entry)}.")
    return found


@cache
def get(name: str) -> Task:
    """The task of that name. One from outside that takes a name of ours is warned about and left out.

    Raises:
        ValueError: there is none, or several from outside, or the entry point of that name is broken.
    """
    outside = [entry for entry in _outside() if entry.name == name]
    if name in OWN:
        for entry in outside:
            warnings.warn(f"{_where(entry)} registers {name!r}, which is a task of dmabench: rename it", stacklevel=2)
        own: Task = import_module(f"dmabench.tasks.{MODULES.get(name, name)}").TASK
        return own
    if not outside:
        raise ValueError(f"no task {name!r}; known are {', '.join(names())}")
    if len(outside) > 1:
        packages = " and ".join(map(_where, outside))
        raise ValueError(f"two tasks register as {name!r}, of {packages}: rename or uninstall one")
    return _load(outside[0])


def tasks() -> dict[str, Task]:
    """All tasks by name. A broken one from outside costs itself alone: it is warned about and left out."""
    found = {}
    for name in names():
        try:
            found[name] = get(name)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def _load(entry: EntryPoint) -> Task:
    where = f"the entry point {entry.name!r} in {ENTRY_POINTS}, of {_where(entry)},"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever another package raises when it is imported
        raise ValueError(f"{where} cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(loaded, Task) or loaded.name != entry.name:
        what = f"the task {loaded.name!r}" if isinstance(loaded, Task) else type(loaded).__name__
        raise ValueError(f"{where} must load to the Task {entry.name!r}, not to {what}")
    return loaded


def _outside() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)


def _where(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "another package"
