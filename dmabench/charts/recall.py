"""Recall: accuracy over the width of the model, over keys a query sees for each pair, and over inference time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmabench.charts.labels import Label, label_ends
from dmabench.charts.parts import HATCH, HATCHED, apart, dress, legend_beside, look, rows_of, stem_of
from dmabench.summaries.controls import UNDERTRAINED
from dmabench.summaries.task_layout import HEADERS, length, name_of, place, shared_words
from dmabench.summaries.tasks import summaries
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
WIDE = 1.9
"""Inches of a panel."""


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """The charts that the rows have data for."""
    import pandas

    lines = sorted((row for row in summaries(task, rows)), key=lambda row: place(task, row))
    frame = pandas.DataFrame({**row, "name": name_of(row)} for row in lines)
    frame = frame[frame["accuracy"].notna()].copy() if "accuracy" in frame else frame.iloc[:0]
    for column in ("window", "seqlen", "pairs", "d_model", "infer_ms", "chance"):
        frame[column] = frame[column].astype(float) if column in frame else float("nan")
    figures: dict[str, Figure] = {}
    x, panel = _axes_of(frame)
    # A task without widths, lengths or windows has nothing to go on the axis.
    for part in apart(task, _one_window(frame[frame[x].notna()]), (x, panel)):
        words = shared_words(task, rows_of(part))
        figure = _figure(part, panel, x, lambda axes, chosen, x=x: _over(axes, chosen, x, []))
        dress(figure, f"{task.title}: accuracy over {_title(x)}", words, part, about)
        figures[stem_of("accuracy", task, figures)] = figure
    swept = frame.groupby("attention")["window"].nunique()
    if (swept > 1).any() and frame["pairs"].notna().any():
        frame["w/pairs"] = frame["window"] / frame["pairs"]
        for part in apart(task, frame, ("seqlen",)):
            if part["w/pairs"].nunique() < 2:
                continue
            figure = _figure(
                part, "seqlen", "w/pairs", lambda axes, chosen: _over(axes, chosen, "w/pairs", _flat(chosen))
            )
            words = shared_words(task, rows_of(part))
            dress(figure, f"{task.title}: accuracy over keys a query sees for each pair", words, part, about)
            figures[stem_of("window", task, figures)] = figure
    if frame["infer_ms"].notna().sum() > 1:
        for part in apart(task, frame[frame["infer_ms"] > 0], ("seqlen",)):
            figure = _figure(part, "seqlen", "infer_ms", _over_time)
            words = shared_words(task, rows_of(part))
            dress(figure, f"{task.title}: accuracy over inference time", words, part, about)
            figures[stem_of("time", task, figures)] = figure
    return figures


def _axes_of(frame: "pandas.DataFrame") -> tuple[str, str]:
    """What is drawn over, and what panels differ in: width and length, unless only the length was swept."""
    return (
        ("seqlen", "d_model")
        if frame["d_model"].nunique() < 2 and frame["seqlen"].nunique() > 1
        else ("d_model", "seqlen")
    )


def _one_window(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """Attentions side by side need one window: the one that most of them were run with."""
    windowed = frame[frame["window"].notna()]
    if windowed.empty:
        return frame
    counts = windowed.groupby("window").agg(kinds=("attention", "nunique"), rows=("attention", "size"))
    best = counts.sort_values(["kinds", "rows"], ascending=False, kind="stable").index[0]
    return frame[frame["window"].isna() | (frame["window"] == best)]


def _figure(frame: "pandas.DataFrame", panel: str, x: str, draw_panel: Any) -> "Figure":
    from matplotlib.figure import Figure

    values = sorted(frame[panel].dropna().unique()) or [None]
    width, height = WIDE * len(values) + 2.0, 3.3
    figure = Figure(figsize=(max(width, 5.4), height), layout=None)
    room = (max(width, 5.4) - 1.9) / len(values)
    for number, value in enumerate(values):
        left = 0.55 + number * room
        axes = figure.add_axes((left / max(width, 5.4), 0.8 / height, (room - 0.18) / max(width, 5.4), 1.75 / height))
        chosen = frame if value is None else frame[frame[panel] == value]
        axes.set_ylim(-0.03, 1.03)
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(_title(x), fontsize=7)
        if len(values) > 1:
            axes.set_title(f"{HEADERS.get(panel, panel)} = {length(int(value))}", fontsize=8)
        if number:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("accuracy (test)")
        labels = draw_panel(axes, chosen)
        chance = chosen["chance"].dropna()
        if not chance.empty:
            axes.axhline(chance.median(), color="#8c8c8c", linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=2)
            axes.text(0.02, chance.median() + 0.015, "chance", transform=axes.get_yaxis_transform(), fontsize=6,
                      color="#757575", va="bottom")  # fmt: skip
        if number == len(values) - 1 and labels:
            label_ends(axes, labels)
        elif number == len(values) - 1:
            legend_beside(axes)
    return figure


def _over(axes: "Axes", frame: "pandas.DataFrame", x: str, flat: list[str]) -> list[Label]:
    """Lines over x, evenly spaced, with a band from low to high; attentions in `flat` have no x and go across."""
    ticks = sorted(frame.loc[~frame["name"].isin(flat), x].dropna().unique())
    labels = []
    for name in dict.fromkeys(frame["name"]):
        mine = frame[frame["name"] == name].sort_values(x)
        style = look(mine["attention"].iloc[0])
        if name in flat:
            mine = mine.iloc[[0, 0]]
            places = [-0.3, len(ticks) - 0.7]
            style |= {"marker": None}
        else:
            places = [ticks.index(value) for value in mine[x]]
        axes.plot(places, mine["accuracy"], label=name, **style)
        low, high = mine["low"].fillna(mine["accuracy"]), mine["high"].fillna(mine["accuracy"])
        if len(places) > 1:
            axes.fill_between(places, low, high, color=style["color"], alpha=0.18, linewidth=0, zorder=3)
        else:
            axes.vlines(places, low, high, color=style["color"], linewidth=1, zorder=3)
        last = float(mine["accuracy"].iloc[-1])
        labels.append(Label(float(len(ticks) - 1), max(last, 1e-3), style["color"], name, "", ""))
    _hatch(axes, frame, x, ticks)
    if x == "w/pairs" and 1.0 in ticks:
        axes.axvline(ticks.index(1.0), color="#8c8c8c", linewidth=0.7, zorder=2)
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" if x == "w/pairs" else length(int(tick)) for tick in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    return labels


def _hatch(axes: "Axes", frame: "pandas.DataFrame", x: str, ticks: list[float]) -> None:
    """Hatching behind every x whose control has not learned."""
    for at, tick in enumerate(ticks):
        if frame.loc[frame[x] == tick, "status"].eq(UNDERTRAINED).any():
            axes.axvspan(at - 0.5, at + 0.5, fill=False, hatch=HATCH, edgecolor=HATCHED, linewidth=0, zorder=1)


def _over_time(axes: "Axes", frame: "pandas.DataFrame") -> list[Label]:
    """A point for each model; those of one attention are joined in the order of their windows, which stand below."""
    axes.set_xscale("log")
    axes.minorticks_off()
    times = frame["infer_ms"]
    axes.set_xlim(times.min() / 1.5, times.max() * 1.5)
    ticks = [base * 10.0**power for power in range(-4, 7) for base in (1, 2, 5)]
    inside = [tick for tick in ticks if times.min() / 1.5 <= tick <= times.max() * 1.5]
    step = -(-len(inside) // 5)  # five numbers fit below a panel
    axes.set_xticks(inside[::step], [f"{tick:g}" for tick in inside[::step]])
    for name in dict.fromkeys(frame["name"]):
        mine = frame[frame["name"] == name].sort_values("window")
        style = look(mine["attention"].iloc[0]) | {"linewidth": 0.8, "label": name}
        axes.plot(mine["infer_ms"], mine["accuracy"], **style)
        for time, accuracy, window in zip(mine["infer_ms"], mine["accuracy"], mine["window"], strict=True):
            if window == window and len(mine) > 1:
                axes.annotate(length(int(window)), (time, accuracy), (0, -9), textcoords="offset points", fontsize=5.5,
                              ha="center", color=style["color"])  # fmt: skip
    if frame["status"].eq(UNDERTRAINED).any():
        axes.axvspan(*axes.get_xlim(), fill=False, hatch=HATCH, edgecolor=HATCHED, linewidth=0, zorder=1)
    return []


def _flat(frame: "pandas.DataFrame") -> list[str]:
    """Attentions without a window: they are the same whatever the others' is."""
    return list(dict.fromkeys(frame.loc[frame["window"].isna(), "name"]))


def _title(x: str) -> str:
    return {
        "d_model": "width of the model",
        "seqlen": "sequence length T",
        "w/pairs": "window / pairs",
        "infer_ms": "inference, ms",
    }[x]
