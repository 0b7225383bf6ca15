"""The first chart of a report: layer time against quality, a point for each attention and window."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dmabench.charts.data import remember
from dmabench.charts.parts import HATCH, HATCHED, legend_beside, look
from dmabench.charts.style import STYLE
from dmabench.summaries.controls import UNDERTRAINED
from dmabench.summaries.quality import ONE_FIGURE, headline, panels_of
from dmabench.summaries.task_layout import length

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS, MOST = 3, 6
"""Panels beside each other, and in one figure."""
WIDE, HIGH, BETWEEN = 2.25, 1.7, 0.95
"""Inches of a panel, and between two rows of them."""
PASSES = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "forward and backward"}


def draw(points: "pandas.DataFrame", about: dict[str, dict[str, str]]) -> "dict[str, Figure]":
    """{file name stem: figure}: one for each run with times, run with qualities, pass, shape and delta, with a panel
    for each setting and length.

    Args:
        points: summaries.quality.points.
        about: run -> runs.provenance of it, for the footers.
    """
    import matplotlib

    figures: dict[str, Figure] = {}
    if not len(points):
        return figures
    with matplotlib.rc_context(STYLE):
        for _, chosen in points.groupby(list(ONE_FIGURE), dropna=False, sort=False):
            panels = panels_of(chosen)
            for start in range(0, len(panels), MOST):
                figure = _figure(panels[start : start + MOST], about)
                stem = _stem(panels[0], figures)
                figures[stem] = figure
    return figures


def _figure(panels: "Sequence[pandas.DataFrame]", about: dict[str, dict[str, str]]) -> "Figure":
    import pandas
    from matplotlib.figure import Figure

    across, down = min(ACROSS, len(panels)), -(-len(panels) // ACROSS)
    width, height = max(6.6, 0.75 + across * (WIDE + 0.3) + 1.2), 1.6 + down * HIGH + (down - 1) * BETWEEN
    wide = (width - 1.95) / across - 0.3
    figure = Figure(figsize=(width, height), layout=None)
    for number, panel in enumerate(panels):
        left = 0.7 + number % ACROSS * (wide + 0.3)
        bottom = height - 0.82 - HIGH - number // ACROSS * (HIGH + BETWEEN)
        axes = figure.add_axes((left / width, bottom / height, wide / width, HIGH / height))
        _panel(axes, panel)
        if number % ACROSS == 0:
            axes.set_ylabel(_measure(panel), fontsize=7)
        elif panel["better"].iloc[0] == "higher":  # from 0 to 1 in every panel
            axes.set_yticklabels([])
        if number == min(ACROSS, len(panels)) - 1:
            legend_beside(axes)
    frame = pandas.concat(panels)
    remember(figure, frame)
    _dress(figure, frame, about)
    return figure


def _panel(axes: "Axes", panel: "pandas.DataFrame") -> None:
    """Times to the right, quality upwards (perplexity downwards is better, which the axis says)."""
    axes.set_xscale("log")
    low, high = panel["ms"].min() / 1.35, panel["ms"].max() * 1.35
    axes.set_xlim(low, high)
    steps = [base * 10.0**power for power in range(-4, 6) for base in (1, 2, 5)]
    ticks = [tick for tick in steps if low <= tick <= high]
    if len(ticks) < 2:  # within one step of 1, 2 and 5
        ticks = [float(f"{time:.2g}") for time in (panel["ms"].min(), panel["ms"].max())]
    axes.set_xticks(ticks[:: -(-len(ticks) // 5)], [f"{tick:g}" for tick in ticks[:: -(-len(ticks) // 5)]])
    axes.minorticks_off()
    for name in dict.fromkeys(panel["name"]):
        mine = panel[panel["name"] == name].sort_values("window")
        style = look(mine["attention"].iloc[0]) | {"linewidth": 0.8}
        axes.plot(mine["ms"], mine["quality"], label=name, **style)
        known = mine[mine["low"].notna() & mine["high"].notna()]
        axes.vlines(known["ms"], known["low"], known["high"], color=style["color"], linewidth=1, zorder=3)
        for time, quality, window in zip(mine["ms"], mine["quality"], mine["window"], strict=True):
            if window == window:
                axes.annotate(
                    length(int(window)), (time, quality), (0, -9), textcoords="offset points", fontsize=5.5,
                    ha="center", color=style["color"],
                )  # fmt: skip
    if panel["better"].iloc[0] == "higher":
        axes.set_ylim(-0.03, 1.05)
    else:
        axes.margins(y=0.15)
    bound = panel["bound"].iloc[0]
    if not math.isnan(bound):
        axes.axhline(bound, color="#8c8c8c", linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        best = headline(panel).window
        chosen = panel[panel["attention"].eq("dma") & panel["window"].eq(best)]
        axes.plot(chosen["ms"], chosen["quality"], "o", markersize=9, markerfacecolor="none", color="#444444", zorder=5)
    if panel["status"].eq(UNDERTRAINED).any():
        axes.axvspan(*axes.get_xlim(), fill=False, hatch=HATCH, edgecolor=HATCHED, linewidth=0, zorder=1)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("ms a layer", fontsize=7)
    title = ", ".join(filter(None, [f"T {length(int(panel['seqlen'].iloc[0]))}", panel["setting"].iloc[0]]))
    axes.set_title(title if len(title) < 42 else f"{title[:40]}…", fontsize=7.5)


def _measure(panel: "pandas.DataFrame") -> str:
    first = panel.iloc[0]
    return str(first["measure"]).partition(": ")[2] + (" (lower is better)" if first["better"] == "lower" else "")


def _dress(figure: "Figure", frame: "pandas.DataFrame", about: dict[str, dict[str, str]]) -> None:
    first = frame.iloc[0]
    _, height = figure.get_size_inches()
    title = f"Layer time against quality: {PASSES[first['pass']]}, {str(first['measure']).partition(':')[0].lower()}"
    layer = f"B {first['batch']:g}, H {first['heads']:g}, G {first['kv_heads']:g}, D {first['head_dim']:g}"
    words = [f"layer: {layer}, {first['dtype']}", *([f"delta {first['delta']}"] if first["delta"] else [])]
    models = list(dict.fromkeys(filter(None, frame["model"])))
    words += [f"model: {models[0]}" + (f" and {len(models) - 1} more" if len(models) > 1 else "")] if models else []
    figure.text(0.02, 1 - 0.13 / height, title, fontsize=9.5, weight="bold", va="top")
    figure.text(0.02, 1 - 0.33 / height, "  ·  ".join(words), fontsize=7, color="#444444", va="top")
    told = ["dashed: MHA's quality less the margin", "ring: the smallest window of DMA that reaches it"]
    told = told if frame["bound"].notna().any() else []
    if frame["status"].eq(UNDERTRAINED).any():
        told.append("hatched: UNDERTRAINED, MHA has not learned it")
    commits = [(about.get(first[run]) or {}).get("commit") or "" for run in ("time_run", "quality_run")]
    seeds = sorted({int(count) for count in frame["seeds"] if count == count})
    parts = [str(first["device"]), f"times {commits[0]}, qualities {commits[1]}"]
    parts += [f"{'-'.join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))} seed{'s' * (seeds != [1])}"] if seeds else []
    figure.text(0.02, 0.24 / height, "  ·  ".join(told), fontsize=6.5, color="#666666")
    figure.text(0.02, 0.09 / height, "  ·  ".join(parts), fontsize=6.5, color="#666666")


def _stem(panel: "pandas.DataFrame", taken: "dict[str, Figure]") -> str:
    first = panel.iloc[0]
    shape = f"h{first['heads']:g}g{first['kv_heads']:g}d{first['head_dim']:g}"
    stem = re.sub(r"[^a-z0-9-]+", "-", f"quality-{first['task']}-{first['pass']}-{shape}".lower()).strip("-")
    number, free = 2, stem
    while free in taken:
        free, number = f"{stem}-n{number}", number + 1
    return free
