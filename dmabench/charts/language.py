"""The chart of language models: bits per byte of held-out text over the position in the sequence."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmabench.charts.parts import apart, dress, legend_beside, look, rows_of, stem_of
from dmabench.summaries.controls import judged
from dmabench.summaries.task_layout import length, name_of, place, shared_words
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
WIDTH, HEIGHT = 6.0, 3.4


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """A figure for each text, size and length, with a line for each attention: a mean over seeds, at the learning
    rate that validation chose."""
    import pandas

    told = [row for row in judged(task, rows) if row["chosen"] and row.get("position_bits_per_byte")]
    told.sort(key=lambda row: place(task, row))
    frame = pandas.DataFrame(told)
    frame["seeds"] = len({row.get("seed") for row in told})
    figures: dict[str, Figure] = {}
    for part in apart(task, frame, ()):
        mine = rows_of(part)
        figure = _figure(mine)
        words = shared_words(task, mine)
        dress(figure, f"{task.title}: bits per byte over position (lower is better)", words, part, about)
        figures[stem_of("position", task, figures)] = figure
    return figures


def _figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout=None)
    axes = figure.add_axes((0.1, 0.24, 0.7, 0.58))
    windows = sorted({row["window"] for row in rows if row.get("window")})
    lines: dict[tuple[str, Any], list[Row]] = {}
    for row in rows:
        lines.setdefault((name_of(row), row.get("window")), []).append(row)
    starts = list(rows[0]["position_from"])
    places = range(len(starts))
    for (name, window), same in lines.items():
        values = [fmean(one) for one in zip(*(row["position_bits_per_byte"] for row in same), strict=False)]
        style = look(same[0]["attention"], windows.index(window) if window else 0)
        label = f"{name} w {length(window)}" if window and len(windows) > 1 else name
        axes.plot(places[: len(values)], values, label=label, **style)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xticks(places, [f"{length(start)}+" for start in starts])
    axes.set_xlabel("first position of each part of a sequence", fontsize=7)
    axes.set_ylabel("bits per byte (test)")
    legend_beside(axes)
    return figure
