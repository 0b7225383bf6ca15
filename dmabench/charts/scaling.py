"""Charts of models of several sizes: loss over parameters and over training FLOPs with fits, and leads over size."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dmabench.charts.parts import apart, dress, legend_beside, look, rows_of, stem_of
from dmabench.statistics.scaling_fit import Point
from dmabench.summaries.scaling import MEASURES, SUBJECT, fits_of, leads_of, lines_of, points_of, told
from dmabench.summaries.task_layout import shared_words
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
WIDTH, HEIGHT = 7.6, 3.6
SIZED = ("size", "window", "batch", "tokens", "vocab", "stage2_window")
"""Axes that go with size: one figure has them all."""


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """Two figures for each text and length."""
    import pandas

    told_rows = [row for mine in lines_of(task, rows).values() for row in mine]
    frame = pandas.DataFrame(told_rows)
    frame["seeds"] = len({row.get("seed") for row in told_rows})
    figures: dict[str, Figure] = {}
    for part in apart(task, frame, SIZED):
        mine = rows_of(part)
        words = shared_words(task, mine)
        figure = _losses(task, mine)
        dress(figure, "Held-out loss over size and computation (lower is better)", words, part, about)
        figures[stem_of("loss", task, figures)] = figure
        if leads_of(task, mine):
            figure = _leads(task, mine)
            title = f"Lead of {SUBJECT} over size (above 0: {SUBJECT} is better)"
            dress(figure, title, words, part, about)
            figures[stem_of("lead", task, figures)] = figure
    return figures


def _losses(task: Task, rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout=None)
    for number, (measure, words) in enumerate(MEASURES.items()):
        axes = figure.add_axes((0.08 + 0.47 * number, 0.22, 0.38, 0.6))
        fits = fits_of(task, rows, measure)
        for name, mine in lines_of(task, rows).items():
            points = points_of(mine, measure)
            fit = fits.get(name)
            label = f"{name} {told(fit.exponent)}" if fit else name
            look_of = look(mine[0]["attention"])
            if fit:
                ends = [min(x for x, _, _ in points), max(x for x, _, _ in points)]
                axes.plot(ends, [fit.at(x) for x in ends], color=look_of["color"], linewidth=1.0, zorder=3)
            _points(axes, points, {**look_of, "linestyle": "none"}, label)
        _dress_axes(axes, words)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_formatter("{x:.3g}")
        axes.tick_params(axis="y", which="both", labelsize=6)
        if not number:
            axes.set_ylabel("loss (test, nats a token)", fontsize=7)
        title = "falls as size^-b, b (95%)" if fits else None
        axes.legend(loc="best", frameon=False, fontsize=6, title=title, title_fontsize=6)
    return figure


def _leads(task: Task, rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * 0.75, HEIGHT), layout=None)
    axes = figure.add_axes((0.12, 0.22, 0.58, 0.6))
    axes.axhline(0, color="#8c8c8c", linewidth=0.9, zorder=1)
    for name, lead in leads_of(task, rows).items():
        style = look(lines_of(task, rows)[name][0]["attention"])
        points = [(math.exp(x), y, seed) for x, y, seed in lead.points]
        label = f"over {name}\n{told(lead.slope, 4)}" if lead.slope else f"over {name}"
        if lead.slope:
            ends = [min(x for x, _, _ in lead.points), max(x for x, _, _ in lead.points)]
            fitted = [lead.intercept + lead.slope.value * x for x in ends]
            axes.plot([math.exp(x) for x in ends], fitted, color=style["color"], linewidth=1.0, zorder=3)
        _points(axes, points, {**style, "linestyle": "none"}, label)
    _dress_axes(axes, MEASURES["parameters"])
    axes.set_ylabel("nats a token", fontsize=7)
    legend_beside(axes, 6.5, "slope over log size (95%)")
    return figure


def _points(axes: "Axes", points: Sequence[Point], style: dict[str, Any], label: str) -> None:
    """The mean of the seeds at each size, and every seed as a small dash."""
    by_size: dict[float, list[float]] = {}
    for x, y, _ in points:
        by_size.setdefault(x, []).append(y)
    axes.plot(list(by_size), [fmean(ys) for ys in by_size.values()], label=label, **style)
    for x, ys in by_size.items():
        if len(ys) > 1:
            axes.plot([x] * len(ys), ys, marker="_", markersize=6, color=style["color"], linestyle="none", zorder=2)


def _dress_axes(axes: "Axes", words: str) -> None:
    from matplotlib.ticker import EngFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if words == MEASURES["parameters"] else "{x:.0e}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(words, fontsize=7)
