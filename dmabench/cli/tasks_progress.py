"""What a terminal shows while the cells of a task run: how many are done, and how far this one is."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from dmabench.tasks.task import Progress, Task
from dmabench.trials.cells import Trial, label, varying
from dmabench.trials.run import Told


class Shown:
    """On stderr, and nothing where it is no terminal: a line for the run, and one for each cell that is running. Use as
    a context manager; its methods may be called in any thread."""

    def __init__(
        self,
        task: Task,
        trials: list[Trial],
        done: int,
        wanted: bool = True,
        console: Console | None = None,
        alone: bool = True,
    ):
        """
        Args:
            done: cells that an earlier part of the run has finished.
            wanted: False: this process prints nothing.
            console: default: stderr.
            alone: one cell runs at a time; it is named in the line of the run, and else each in its own.
        """
        self.names = varying(task, trials)
        console = console or Console(stderr=True)
        self.bars = Bars(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            _Told(),
            TimeElapsedColumn(),
            console=console,
            disable=not (wanted and console.is_terminal),
            transient=True,
        )
        self.cells = self.bars.add_task("cells", total=len(trials), completed=done, told="")
        self.alone = alone
        self.running: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def began(self, trial: Trial) -> Told:
        """Shows that the cell has started; returns who is to be told of its progress."""
        name = label(trial, self.names)
        if self.alone:
            self.bars.update(self.cells, told=name)
        bar = self.running.pop(trial.id, None)
        if bar is not None:  # it ran before, and ran out of memory
            self.bars.remove_task(bar)
        bar = self.running[trial.id] = self.bars.add_task("starting", total=None, told="" if self.alone else name)
        pace = Pace()

        def told(progress: Progress) -> None:
            words = told_of(progress, pace.left_s(progress), self.alone)
            self.bars.update(
                bar,
                description=progress.stage,
                completed=progress.step,
                total=progress.steps or None,
                told=words if self.alone else f"{words} {name}".strip(),
            )

        return told

    def ended(self, trial: Trial, rows: list[dict[str, Any]]) -> None:
        """Counts a finished cell."""
        self.bars.advance(self.cells)
        self.bars.remove_task(self.running.pop(trial.id))


class Pace:
    """Seconds that a stage has left, from the steps it has made since it was first seen."""

    def __init__(self) -> None:
        self.stage, self.step, self.at = "", 0, 0.0

    def left_s(self, progress: Progress, now: float | None = None) -> float | None:
        """None until it is known."""
        now = time.monotonic() if now is None else now
        if progress.stage != self.stage:
            self.stage, self.step, self.at = progress.stage, progress.step, now
        made = progress.step - self.step
        return (now - self.at) / made * (progress.steps - progress.step) if made > 0 else None


def told_of(progress: Progress, left_s: float | None, alone: bool = True) -> str:
    """Loss, accuracy, tokens a second and time left, in about 40 columns; of a cell that is not alone on its device no
    tokens a second, which would say little, nor the loss."""
    words = []
    if progress.loss is not None and alone:
        words.append(f"loss {progress.loss:.3f}")
    if progress.accuracy is not None:
        words.append(f"acc {progress.accuracy:.3f}")
    if progress.tokens_per_s is not None and alone:
        words.append(f"{_short(progress.tokens_per_s)} tok/s")
    if left_s is not None:
        words.append(f"{duration(left_s)} left")
    return " ".join(words)


def duration(seconds: float) -> str:
    """1:05, 12:00, 3:20:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


class _Told(ProgressColumn):
    """Cut at the end of the line, never wrapped."""

    def render(self, task: Bar) -> Text:
        return Text(str(task.fields["told"]), no_wrap=True, overflow="ellipsis")
