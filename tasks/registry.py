"""Every task by name: our own, then those from outside.

A task from outside registers through the entry-point group `dmabench.tasks`: an entry point of the task's name that
loads to its `Task`. Names and one line about each are known without importing any, since tasks import torch.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from dmabench.tasks.task import Task

ENTRY_POINTS = "dmabench.tasks"
OWN = {
    "mqar": "Recall values of keys seen among random tokens.",
    "needle": "Find needles in long haystacks, beyond the lengths of training too.",
    "patterns": "Copy, select and induce: the paper's three patterns of sparsity.",
}
"""Name, which is the module's, and what `dmabench --help` says of it."""


def names() -> dict[str, str]:
    """Every task's name and a line about it, in the order of the tables. Imports no task."""
    found = dict(OWN)
    for entry in _outside():
        where = f"the package {entry.dist.name}" if entry.dist else "another package"
        found.setdefault(entry.name, f"A task of {where}.")
    return found


@cache
def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none, or several, or the entry point of that name loads to something else.
    """
    outside = [entry for entry in _outside() if entry.name == name]
    if len(outside) + (name in OWN) > 1:
        raise ValueError(f"two tasks register as {name!r}: rename or uninstall one")
    if name in OWN:
        task: Task = import_module(f"dmabench.tasks.{name}").TASK
        return task
    if not outside:
        raise ValueError(f"no task {name!r}; known are {', '.join(names())}")
    loaded = outside[0].load()
    if not isinstance(loaded, Task) or loaded.name != name:
        what = f"the task {loaded.name!r}" if isinstance(loaded, Task) else type(loaded).__name__
        raise ValueError(f"the entry point {name!r} in {ENTRY_POINTS} must load to the Task {name!r}, not to {what}")
    return loaded


def tasks() -> tuple[Task, ...]:
    """All tasks."""
    return tuple(get(name) for name in names())


def _outside() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)
