"""What a task is: axes that can be swept, presets, and how one cell is trained and scored.

A task is one module with a `TASK`. The harness makes its command, its table and its charts from what stands here; the
task knows nothing of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Settings = dict[str, Any]
"""One cell: a value for every axis of the task (a tuple for axes that are not swept), None where one does not apply."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One setting of a task, which is also an option of its command and a field of its rows."""

    name: str
    """Field of settings and rows; the option is --name with dashes."""
    type: type
    """int, float, str or bool."""
    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    only: tuple[str, ...] = ()
    """Kinds of attention that this axis matters to; for the others it is None, so that no cell runs twice."""
    swept: bool = True
    """True: every value is a cell of its own. False: a cell gets all values, as a tuple (lengths to test at, say)."""
    names_model: bool = False
    """Its values are models: rows that differ in it are compared as rows of two attentions are."""

    @property
    def of_model(self) -> bool:
        """Whether it belongs to a model as its attention does, rather than to what the model is trained and asked."""
        return bool(self.only) or self.names_model


@dataclass(frozen=True)
class Preset:
    """Documented settings: one or more blocks of axis -> values, measured in one run."""

    about: str
    blocks: tuple[dict[str, Any], ...]
    """Values as on the command line: "2k,4k", "mha,dma", "1e-3,3e-3"; an axis that is missing takes Task.defaults."""


@dataclass(frozen=True)
class Mode:
    """Another way to run a task, taken where a certain axis is given: scoring a model that is trained already, say."""

    about: str
    """What it does, to end a sentence about an axis that has no place in it: "scores what is trained already"."""
    axes: tuple[str, ...]
    """The axes that it has; all others are None in its cells, and cannot be given."""
    alone: tuple[str, ...]
    """Those of them that the task has in this mode alone."""
    defaults: dict[str, dict[str, Any]]
    """As Task.defaults, in place of them."""


@dataclass(frozen=True)
class Cost:
    """What a cell takes at most (early stops make it less)."""

    tokens: int
    """Tokens trained on."""
    flops: float
    """Operations of training and scoring."""
    mib: float
    """Peak memory, estimated."""
    scored: int = 0
    """Tokens that go through the model without being trained on, in validations and tests."""


@dataclass(frozen=True)
class Progress:
    """Where a cell is: told often, shown at most a few times a second."""

    stage: str
    """train, validate, score, time."""
    step: int
    steps: int
    loss: float | None = None
    accuracy: float | None = None
    tokens_per_s: float | None = None


@dataclass
class Tools:
    """What the harness lends a task for one cell."""

    device: str
    folder: Path
    """Of this cell alone, for its checkpoint; survives an interruption and is deleted once the rows are stored."""
    progress: Callable[[Progress], None] = lambda progress: None
    time_ms: Callable[[Callable[[], Any]], float] | None = None
    """Median milliseconds of a call, measured as `dmabench kernels` measures; None: do not time."""
    deterministic: bool = False
    compile: bool = False


class Examples(Protocol):
    """Training data: a pure function of the step, so that a resumed training sees what it would have seen."""

    def batch(self, step: int, size: int) -> "tuple[Tensor, Tensor]":
        """input_ids and labels, both [size, T] int64 on the CPU; more rows where a curriculum makes them shorter.

        labels[b, t] is the token to be predicted at t, from input_ids[b, :t + 1] (nothing is shifted); -100: none.
        """
        ...


@dataclass(frozen=True)
class Task:
    """A task as the harness sees it."""

    name: str
    title: str
    about: str
    """One sentence for --help."""
    examples: tuple[str, ...]
    """Three commands that run, for --help."""
    axes: tuple[Axis, ...]
    defaults: dict[str, dict[str, Any]]
    """Device ("cpu", "cuda") -> axis -> values as on the command line: what the command alone does."""
    presets: dict[str, Preset]
    refusal: Callable[[Settings], str | None]
    """Why a cell cannot be (what, why, what to do), or None."""
    cost: Callable[[Settings], Cost]
    run: Callable[[Settings, Tools], list[Row]]
    """Builds, trains and scores one cell: its rows, without the fields of settings, which the harness adds."""
    control: float
    """Accuracy that MHA must reach at trained lengths; rows compared with one below it are UNDERTRAINED. 0: any, and
    MHA need not be there."""
    columns: tuple[str, ...] = field(default=())
    """Fields that its table shows, besides the axes that vary."""
    complete: Callable[[Settings], Settings] = field(default=dict)
    """Fills in axes that are None because neither the command line nor the defaults name them, from the others (the
    shortest sequence that holds so many pairs, say); runs before `refusal`, and what it returns is the cell."""
    prepare: Callable[[Settings, Callable[[str], None]], str | None] | None = None
    """Makes once, before any cell runs, what cells share on this machine (text in tokens, say), telling what takes
    long; a ValueError refuses the whole run. Returns what a user should know of it, or None."""
    modes: dict[str, Mode] = field(default_factory=dict)
    """Axis -> the mode in which the task runs where that axis is given. Presets are for the task without a mode."""
    keeps: tuple[str, ...] = ()
    """Names in a cell's folder that stay when its rows are stored: a trained model, say."""
    chosen_by: str = "validation_accuracy"
    """Field of rows by which a learning rate is chosen: the highest, of a name that ends in loss the lowest."""
