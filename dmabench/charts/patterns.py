"""Patterns: one figure that is a table, attentions down and patterns across."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmabench.charts.parts import dress, grid, stem_of
from dmabench.summaries.controls import UNDERTRAINED
from dmabench.summaries.task_layout import interval, matrix, place, share, shared_words
from dmabench.summaries.tasks import summaries
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """Accuracy and its interval in every cell; a cell that could not run says its status."""
    import pandas
    from matplotlib.figure import Figure

    lines = sorted(summaries(task, rows), key=lambda row: place(task, row))
    across, down, cells = matrix(task, lines)
    wide, high = 1.12 * len(across), 0.34 * len(down)
    width, height = max(5.4, 1.25 + wide + 0.85), high + 1.35
    figure = Figure(figsize=(width, height), layout=None)
    axes = figure.add_axes((1.1 / width, 0.5 / height, wide / width, high / height))
    table = [[cells.get((name, column), {}) for column in across] for name in down]
    drawn = grid(
        axes,
        [[float("nan") if row.get("accuracy") is None else row["accuracy"] for row in line] for line in table],
        [[_text(row) for row in line] for line in table],
        [[row.get("status") == UNDERTRAINED for row in line] for line in table],
        "cividis",
        (0, 1),
    )
    axes.set_xticks([at + 0.5 for at in range(len(across))], [one.replace(" ", "\n", 1) for one in across], fontsize=7)
    axes.set_yticks([at + 0.5 for at in range(len(down))], down, fontsize=7.5)
    axes.xaxis.tick_top()
    bar = figure.add_axes(((1.1 + wide + 0.2) / width, 0.5 / height, 0.12 / width, high / height))
    figure.colorbar(drawn, cax=bar).outline.set_visible(False)
    bar.tick_params(labelsize=6.5, length=2)
    dress(figure, f"{task.title}: accuracy", shared_words(task, lines, ("pattern",)), pandas.DataFrame(lines), about)
    return {stem_of("accuracy", task, {}): figure}


def _text(row: Row) -> str:
    if row.get("accuracy") is None:
        return str(row.get("status", "")).replace("_", " ").lower()
    return share(row["accuracy"]) + (f"\n{interval(row)}" if row.get("low") is not None else "")
