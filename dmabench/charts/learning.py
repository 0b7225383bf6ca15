"""Loss on validation text over the tokens that a model has been trained on: a line for each attention (of ablations:
each variant) and learning rate."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmabench.charts.ablation import look_of_variant
from dmabench.charts.labels import Label, label_ends
from dmabench.charts.parts import apart, dress, look, rows_of, stem_of
from dmabench.summaries.controls import judged
from dmabench.summaries.task_layout import length, name_of, place, words_with_size
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
WIDTH, HEIGHT = 6.4, 3.7
TITLE = "Held-out loss over tokens of training (lower is better)"
MOST = 14
"""Names that fit beside the axes."""


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """A figure for each text, size and length; none where no row has a curve."""
    import pandas

    told = [row for row in judged(task, rows) if row.get("curve_loss")]
    told.sort(key=lambda row: place(task, row))
    figures: dict[str, Figure] = {}
    if not told:
        return figures
    for part in apart(task, pandas.DataFrame(told), ("variant", "tested")):
        mine = rows_of(part)
        part = part.assign(seeds=len({row.get("seed") for row in mine}))
        figure = _figure(task, mine)
        dress(figure, TITLE, words_with_size(task, mine), part, about, _notes(mine))
        figures[stem_of("curve", task, figures)] = figure
    return figures


def _notes(rows: Sequence[Row]) -> list[str]:
    found = ["nats a token of validation text"]
    found += ["thin: each seed"] * (len({row.get("seed") for row in rows}) > 1)
    return found + ["dashed: rates that validation did not choose"] * any(not row["chosen"] for row in rows)


def _figure(task: Task, rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(WIDTH, HEIGHT), layout=None)
    axes = figure.add_axes((0.09, 0.23, 0.68, 0.62))
    lines: dict[tuple[Any, ...], list[Row]] = {}
    # The rate that was chosen comes first, so that its line is the solid one with the filled markers.
    for row in sorted(rows, key=lambda row: not row["chosen"]):
        lines.setdefault((_name(row), row.get("window"), row.get("lr")), []).append(row)
    names = _names(lines)
    labels: list[Label] = []
    for key, same in sorted(lines.items(), key=lambda item: rows.index(item[1][0])):
        of_name = [other for other in lines if other[0] == key[0]]
        style = (
            look_of_variant(task, key[0]) if same[0].get("variant") else look(same[0]["attention"], of_name.index(key))
        )
        label = _line(axes, same, style, names[key])
        # Where there are too many names, those of the rates that validation chose have the room.
        labels += [label] * (same[0]["chosen"] or len(lines) <= MOST)
    _mark_second_stage(axes, rows)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens of training", fontsize=7)
    axes.set_ylabel("loss (validation)")
    last = max(label.x for label in labels)
    # Batches of other sizes end a little before the others: names of all stand in one column.
    label_ends(axes, [label._replace(x=last) if label.x > 0.95 * last else label for label in labels])
    return figure


def _name(row: Row) -> str:
    return str(row["variant"]) if row.get("variant") else name_of(row)


def _names(lines: dict[tuple[Any, ...], list[Row]]) -> dict[tuple[Any, ...], str]:
    """Of each line: with its window and its learning rate, where another line of its attention has others."""
    found = {}
    for key in lines:
        alike = [other for other in lines if other[0] == key[0]]
        words = [str(key[0])]
        words += [f"w {length(key[1])}"] * (len({other[1] for other in alike}) > 1)
        words += [f"lr {key[2]:g}"] * (key[2] is not None and len({other[2] for other in alike}) > 1)
        found[key] = " ".join(words)
    return found


def _line(axes: "Axes", rows: Sequence[Row], style: dict[str, Any], name: str) -> Label:
    """The mean over seeds, and each of several seeds as a thin line."""
    tokens = rows[0]["curve_tokens"]
    mean = [fmean(losses) for losses in zip(*(row["curve_loss"] for row in rows), strict=False)]
    if len(rows) > 1:
        for row in rows:
            thin: dict[str, Any] = {"color": style["color"], "linewidth": 0.6, "alpha": 0.45, "zorder": 2}
            axes.plot(row["curve_tokens"], row["curve_loss"], **thin)
    axes.plot(tokens[: len(mean)], mean, label=name, **{**style, "markersize": 3.2})
    return Label(tokens[len(mean) - 1], mean[-1], style["color"], name, "", "")


def _mark_second_stage(axes: "Axes", rows: Sequence[Row]) -> None:
    """A line where the second stage begins, whose sequences are longer."""
    if not rows[0].get("stage2_tokens"):
        return
    axes.axvline(rows[0]["tokens"], color="#8c8c8c", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        "stage 2",
        (rows[0]["tokens"], 1),
        (3, -8),
        ("data", "axes fraction"),
        "offset points",
        fontsize=6.5,
        color="#757575",
    )
