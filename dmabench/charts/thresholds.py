"""What lets a key in, in ablations: the threshold of importance that a new key must pass, and quantiles of the
importance of all keys, at growing lengths. A panel for each variant, since each has its own scale."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmabench.charts.style import COLOURS
from dmabench.summaries.task_layout import length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Head = dict[int, tuple[float, list[float]]]
"""Length -> threshold and quantiles."""
MEDIAN = 2
"""Place of the median among the quantiles of a row."""
ACROSS = (4, 3)
"""Panels side by side, where there are more: what leaves the fewest places empty."""
WIDE, HIGH, BETWEEN, LEFT, RIGHT = 1.4, 1.3, 0.5, 0.62, 1.05
"""Inches: of a panel, above the next row of panels and between two of one row, beside them."""
LEAST = 7.4
"""Of the figure, so that the notes below have room."""
TOP, BELOW = 0.78, 0.85
BANDS = {(0, 4): "#d6e6f2", (1, 3): "#a9cce6"}
"""Places of two quantiles, and the colour between them."""
QUANTILE, THRESHOLD = COLOURS[0], COLOURS[1]
NOTE = (
    "delta from each head's median key at the shortest length; threshold: the least important live key at the end; "
    "means over heads, thin: each"
)


def drawable(row: Row) -> bool:
    """Whether a row has thresholds and quantiles at several lengths."""
    return bool(row.get("mask_threshold") and row.get("mask_quantiles") and len(set(row["mask_tokens"])) > 1)


def figure_of(rows: Sequence[Row]) -> "Figure":
    """A panel for each variant of rows that are `drawable`."""
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(row["variant"] for row in rows))
    across = min(ACROSS, key=lambda count: -len(variants) % count) if len(variants) > 4 else len(variants)
    down = -(-len(variants) // across)
    width = max(LEFT + across * (WIDE + BETWEEN) - BETWEEN + RIGHT, LEAST)
    height = TOP + down * (HIGH + BETWEEN) - BETWEEN + BELOW
    figure = Figure(figsize=(width, height), layout=None)
    for number, variant in enumerate(variants):
        left = LEFT + number % across * (WIDE + BETWEEN)
        bottom = height - TOP - HIGH - number // across * (HIGH + BETWEEN)
        axes = figure.add_axes((left / width, bottom / height, WIDE / width, HIGH / height))
        _panel(axes, [row for row in rows if row["variant"] == variant], named=number == 0)
        axes.set_title(variant, fontsize=8)
        if number + across >= len(variants):
            axes.set_xlabel("tokens of the sequence", fontsize=7)
        if number % across == 0:
            axes.set_ylabel("delta, from the median", fontsize=7)
            axes.yaxis.set_label_coords(-0.36, 0.5)  # the same for all, however long their numbers are
    handles, names = figure.axes[0].get_legend_handles_labels()
    place = (LEFT + across * (WIDE + BETWEEN) - BETWEEN + 0.12) / width
    middle = (BELOW + (height - TOP - BELOW) / 2) / height
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(place, middle), frameon=False, fontsize=6.5)
    return figure


def _panel(axes: "Axes", rows: Sequence[Row], named: bool) -> None:
    from dmabench.tasks.mask_statistics import QUANTILES  # imports torch

    heads = [head for row in rows for head in _heads(row)]
    lengths = sorted({tokens for head in heads for tokens in head})
    at = [[head[tokens] for head in heads if tokens in head] for tokens in lengths]
    thresholds = [fmean(threshold for threshold, _ in of_heads) for of_heads in at]
    quantiles = [[fmean(ones) for ones in zip(*(own for _, own in of_heads), strict=True)] for of_heads in at]
    # Thresholds first, since a chart in words tells no more than its first lines.
    axes.plot(
        lengths, thresholds, color=THRESHOLD, linewidth=1.5, marker="o", markersize=3.5, label="threshold", zorder=4
    )
    for head in heads:
        values = [threshold for threshold, _ in head.values()]
        axes.plot(list(head), values, color=THRESHOLD, linewidth=0.5, alpha=0.55, zorder=3)
    median: dict[str, Any] = {"color": QUANTILE, "linewidth": 1.1, "marker": "s", "markersize": 3, "zorder": 3}
    axes.plot(lengths, [one[MEDIAN] for one in quantiles], label="median key" if named else None, **median)
    for (low, high), colour in BANDS.items():
        words = f"{QUANTILES[low]:.0%} to {QUANTILES[high]:.0%}\nof keys"
        ends = [one[low] for one in quantiles], [one[high] for one in quantiles]
        axes.fill_between(lengths, *ends, color=colour, linewidth=0, label=words, zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [length(tokens) for tokens in lengths])
    axes.minorticks_off()
    axes.tick_params(labelsize=6)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _heads(row: Row) -> list[Head]:
    """Of each head: its threshold and quantiles at each length, less its median key at the shortest. Heads lie further
    apart than their own keys, so without that their mean would say nothing of any."""
    found: dict[tuple[int, int], Head] = {}
    middles: dict[tuple[int, int], float] = {}
    columns = (row[f"mask_{name}"] for name in ("layer", "head", "tokens", "threshold", "quantiles"))
    for layer, head, tokens, threshold, quantiles in sorted(zip(*columns, strict=True), key=lambda one: one[2]):
        own = found.setdefault((layer, head), {})
        middle = middles.setdefault((layer, head), quantiles[MEDIAN])
        own[tokens] = threshold - middle, [value - middle for value in quantiles]
    return list(found.values())
