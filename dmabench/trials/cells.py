"""Trials: the cells of a task. One setting of every axis is one cell, trained and scored by itself. No torch here."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from dmabench.errors import Refusal
from dmabench.tasks.task import Cost, Mode, Settings, Task
from dmabench.workload.axis_values import option, values_of

MOST = 10_000
"""Cells of one run."""
Blocks = list[dict[str, Any]]


@dataclass(frozen=True)
class Trial:
    """One cell."""

    task: str
    settings: Settings
    refusal: str | None
    """Why it cannot be; then nothing is run."""
    cost: Cost
    """Nothing where it is refused."""
    number: int = 0
    """Its place in the list: cells of a run may finish in another order."""

    @property
    def id(self) -> str:
        """Hash of task and settings: what a resumed run recognises finished cells by."""
        text = json.dumps({"task": self.task, **self.settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def blocks_of(task: Task, preset: str | None, given: dict[str, str], device: str) -> Blocks:
    """Axis -> values: the defaults of the device, overridden by each block of the preset, overridden by flags.

    Raises:
        Refusal: an unknown preset, or an axis that the task has not in this mode.
    """
    if preset is not None and preset not in task.presets:
        near = get_close_matches(preset, task.presets, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(f"--preset {preset!r} is unknown; choose from {', '.join(task.presets)}{hint}")
    mode = _mode(task, preset, given)
    defaults = (mode or task).defaults["cuda" if device.startswith("cuda") else "cpu"]
    blocks = [{**defaults, **block, **given} for block in (task.presets[preset].blocks if preset else ({},))]
    known = {axis.name for axis in task.axes}
    for block in blocks:
        if not block.keys() <= known:
            raise ValueError(f"{task.name} sets {', '.join(sorted(block.keys() - known))}, which are none of its axes")
    return blocks


def _mode(task: Task, preset: str | None, given: dict[str, str]) -> Mode | None:
    """The mode that the axes given choose, if any."""
    for name, mode in task.modes.items():
        if name in given:
            wrong = next(
                (option(axis) for axis in task.axes if axis.name in given and axis.name not in mode.axes), None
            )
            if wrong or preset is not None:
                raise Refusal(f"--{name} {mode.about}: leave out {wrong or f'--preset {preset}'}")
            return mode
        wrong = next((option(axis) for axis in task.axes if axis.name in given and axis.name in mode.alone), None)
        if wrong:
            raise Refusal(f"{wrong} goes with --{name}, which {mode.about}: give that too, or leave it out")
    return None


def make_trials(task: Task, blocks: Blocks) -> list[Trial]:
    """The cells of all blocks, each once: block after block, so that what matters most can come first, and in each all
    of the first seed before those of the next.

    Raises:
        Refusal: a value that an axis has not, too many cells, or none that the task can do.
    """
    settings = []
    for block in blocks:
        settings += sorted(_combinations(task, block), key=lambda one: one.get("seed") or 0)
    trials: dict[str, Trial] = {}
    for one in settings:
        refusal = task.refusal(one)
        cost = Cost(0, 0, 0) if refusal else task.cost(one)
        trial = Trial(task.name, one, refusal, cost, len(trials))
        trials.setdefault(trial.id, trial)
    found = list(trials.values())
    if all(trial.refusal for trial in found):
        more = f" (and {len(found) - 1} more cells cannot be either)" if len(found) > 1 else ""
        raise Refusal(f"{found[0].refusal}{more}")
    return found


def _combinations(task: Task, block: dict[str, Any]) -> list[Settings]:
    values = {}
    for axis in task.axes:
        found = values_of(axis, block.get(axis.name))
        single = axis.swept or axis.type is bool  # a switch is on or off, not both
        values[axis.name] = found if single else [None if found == [None] else tuple(found)]
    count = math.prod(map(len, values.values()))
    if count > MOST:
        wide = sorted((name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name]))
        told = ", ".join(f"{len(values[name])} of {name}" for name in wide)
        raise Refusal(f"{count} cells are more than {MOST} ({told}): sweep fewer values at once")
    return [_completed(task, dict(zip(values, one, strict=True))) for one in itertools.product(*values.values())]


def _completed(task: Task, settings: Settings) -> Settings:
    """The settings with what follows from them, and without what does not matter to this attention."""
    filled = task.complete(_applied(task, settings))
    return _applied(task, {axis.name: filled[axis.name] for axis in task.axes})


def _applied(task: Task, settings: Settings) -> Settings:
    attention = settings.get("attention")
    if attention is None:  # a model that is loaded: nobody knows yet which it has
        return settings
    unused = {axis.name for axis in task.axes if axis.only and attention not in axis.only}
    return {name: None if name in unused else value for name, value in settings.items()}


def from_json(settings: Settings) -> Settings:
    """Settings as a task knows them: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def seeds_of(trials: Iterable[Trial]) -> list[int]:
    """The seeds of these cells, for the manifest."""
    return sorted({trial.settings["seed"] for trial in trials if trial.settings.get("seed") is not None})


def shard(trials: list[Trial], text: str | None) -> list[Trial]:
    """The cells of machine i of n ("i/n", from 1): the same share on every machine, alike in cost.

    Raises:
        Refusal: not such a text, or a share without cells.
    """
    if text is None:
        return trials
    left, slash, right = text.partition("/")
    if not (slash and left.isdecimal() and right.isdecimal() and 1 <= int(left) <= int(right)):
        raise Refusal(f"--shard {text!r}: write which part of how many, from 1/4 to 4/4")
    index, count = int(left), int(right)
    if count > len(trials):
        raise Refusal(f"--shard {text}: there are {len(trials)} cells, so at most {len(trials)} parts")
    loads = [0.0] * count
    mine = set()
    for trial in sorted(trials, key=lambda one: (-one.cost.flops, one.id)):  # the longest first, to the least loaded
        least = min(range(count), key=lambda at: (loads[at], at))
        loads[least] += trial.cost.flops + 1  # so that refused cells, which cost nothing, are dealt out too
        if least == index - 1:
            mine.add(trial.id)
    return [trial for trial in trials if trial.id in mine]


def varying(task: Task, trials: list[Trial]) -> list[str]:
    """Axes in which these cells differ."""
    return [axis.name for axis in task.axes if len({str(trial.settings[axis.name]) for trial in trials}) > 1]


def label(trial: Trial, names: Iterable[str]) -> str:
    """The cell in a few words: its attention, and the axes `names` ("dma window=64 lr=0.001")."""
    settings = trial.settings
    words = [f"{name}={text(settings[name])}" for name in names if name != "attention" and settings[name] is not None]
    return " ".join([str(settings.get("attention") or trial.task), *words])


def text(value: Any) -> str:
    """A value as the command line would take it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
