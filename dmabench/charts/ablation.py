"""Charts of ablations: the score of every variant, tested with its own attention and with others, and what the masks of
heads are like at growing lengths."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmabench.charts import thresholds
from dmabench.charts.parts import apart, dress, legend_beside, rows_of, stem_of
from dmabench.charts.style import COLOURS, MARKERS
from dmabench.summaries.controls import CONTROL, judged
from dmabench.summaries.task_layout import length, shared_words
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
OWN = "own"
WIDTH = 6.8
MARKS = {"own": "o", "mha": "s", "swa": "v", "dma": "^", "no-mask": "D", "no-bias": "P"}
COLOUR = {name: "#000000" if name == OWN else COLOURS[at - 1] for at, name in enumerate(MARKS)}


def look_of_variant(task: Task, variant: str) -> dict[str, Any]:
    """Line and marker of a variant, the same in every chart: a colour for each, dashed from the seventh on; MHA, the
    control, is black."""
    at = _order(task).index(variant)
    return {
        "color": "#000000" if variant == CONTROL else COLOURS[at % len(COLOURS)],
        "linestyle": "-" if at < len(COLOURS) or variant == CONTROL else "--",
        "linewidth": 1.3,
        "marker": MARKERS[at % len(MARKERS)],
        "markersize": 3.5,
        "zorder": 4,
    }


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """Scores of each subject and size; where there are masks, two figures of those."""
    import pandas

    told = [row for row in judged(task, rows) if row["chosen"] and row.get("test_loss") is not None]
    order = _order(task)
    told.sort(key=lambda row: order.index(row["variant"]))
    frame = pandas.DataFrame(told)
    frame["seeds"] = len({row.get("seed") for row in told})
    figures: dict[str, Figure] = {}
    for part in apart(task, frame, ("variant", "tested")):
        mine = rows_of(part)
        words = [str(mine[0]["on"]), *shared_words(task, mine)]
        score = "test_loss" if mine[0]["on"] == "language" else "accuracy"
        figure = _scores(mine, score)
        title = "loss (lower is better)" if score == "test_loss" else "accuracy (higher is better)"
        dress(figure, f"{task.title}: {title}", words, part, about)
        figures[stem_of(f"{mine[0]['on']}-score", task, figures)] = figure
        masked = [row for row in mine if row.get("mask_tokens") and len(set(row["mask_tokens"])) > 1]
        if masked:
            figure = _masks(task, masked)
            dress(figure, f"{task.title}: masks of heads beyond the length of training", words, part, about)
            figures[stem_of(f"{mine[0]['on']}-masks", task, figures)] = figure
        if told_of := [row for row in mine if thresholds.drawable(row)]:
            figure = thresholds.figure_of(told_of)
            title = f"{task.title}: what lets a key in, beyond the length of training"
            dress(figure, title, words, part, about, [thresholds.NOTE])
            figures[stem_of(f"{mine[0]['on']}-thresholds", task, figures)] = figure
    return figures


def _order(task: Task) -> tuple[str, ...]:
    return next(axis.choices for axis in task.axes if axis.name == "variant")


def _scores(rows: Sequence[Row], score: str) -> "Figure":
    """A line for each variant: a dot for every seed, and a large one for the mean."""
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(row["variant"] for row in rows))
    height = 1.3 + 0.24 * len(variants)
    figure = Figure(figsize=(WIDTH, height), layout=None)
    axes = figure.add_axes((0.14, 0.75 / height, 0.68, (height - 1.3) / height))
    for name, mark in MARKS.items():
        by_variant = {
            variant: [row[score] for row in rows if row["variant"] == variant and row["tested"] == name]
            for variant in variants
        }
        if not any(by_variant.values()):
            continue
        style: dict[str, Any] = {"color": COLOUR[name], "marker": mark, "linestyle": "none"}
        known = {variants.index(variant): values for variant, values in by_variant.items() if values}
        label = "its own" if name == OWN else name
        filled: dict[str, Any] = {
            "markersize": 5,
            "markerfacecolor": None if name == OWN else "none",
            "zorder": 4 + (name == OWN),
        }
        axes.plot([fmean(values) for values in known.values()], list(known), label=label, **style, **filled)
        for at, values in known.items():
            if len(values) > 1:
                axes.plot(values, [at] * len(values), **{**style, "marker": "|"}, markersize=5, zorder=3)
    axes.set_yticks(range(len(variants)), variants)
    axes.invert_yaxis()
    axes.grid(True, axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("loss (test, nats a token)" if score == "test_loss" else "accuracy (test)", fontsize=7)
    legend_beside(axes, title="tested with")
    return figure


def _masks(task: Task, rows: Sequence[Row]) -> "Figure":
    """Median age and overlap over length, a line for each variant: means over heads, layers and seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH + 0.6, 3.3), layout=None)
    lengths = sorted({tokens for row in rows for tokens in row["mask_tokens"]})
    panels = {"age": "median age of live keys (tokens)", "overlap": "overlap of heads (Jaccard)"}
    for number, (name, words) in enumerate(panels.items()):
        axes = figure.add_axes((0.08 + 0.41 * number, 0.24, 0.33, 0.56))
        for variant in dict.fromkeys(row["variant"] for row in rows):
            values = {tokens: _mean_at(rows, variant, name, tokens) for tokens in lengths}
            known = {tokens: value for tokens, value in values.items() if value is not None}
            axes.plot(list(known), list(known.values()), label=variant, **look_of_variant(task, variant))
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [length(tokens) for tokens in lengths])
        axes.set_xlabel("tokens of the sequence", fontsize=7)
        axes.set_title(words, fontsize=8)
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        if name == "age":
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(-0.03, 1.03)
            legend_beside(axes)
    return figure


def _mean_at(rows: Sequence[Row], variant: str, name: str, tokens: int) -> float | None:
    values = [
        value
        for row in rows
        if row["variant"] == variant
        for value, at in zip(row[f"mask_{name}"], row["mask_tokens"], strict=True)
        if at == tokens and value is not None
    ]
    return fmean(values) if values else None
