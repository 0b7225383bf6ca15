"""Losses on held-out text side by side: of each attention with its interval, and how far it is from dense attention's.

Drawn from the frame that the table of a report is made from (report/held_out.py).
"""

import math
from typing import TYPE_CHECKING, Any

from dmabench.charts.parts import dress, look
from dmabench.charts.style import STYLE

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, LINE = 7.0, 0.25
"""Inches of the figure, and of a line in it."""
TOP, BELOW = 0.85, 0.8
LONGEST = 2.8
"""Inches that names may take."""
PANELS = {"loss": "held-out loss (nats a token)", "apart": "minus MHA, paired"}
TITLE = "Held-out loss of each attention (lower is better)"
OVER = {"seeds": "over seeds (Student's t)", "documents": "over documents of the text (bootstrap)"}


def draw(frame: "pandas.DataFrame", words: list[str], about: dict[str, str]) -> "Figure":
    """A line for each row of the frame, in its order.

    Args:
        frame: where, name, attention, seeds, device, status; and for each of PANELS its value, under that name, with
            _low and _high (NaN without an interval) and _over ("seeds" or "documents", None without).
        words: settings that all rows share.
        about: runs.provenance, for the footer.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        panels = {field: title for field, title in PANELS.items() if frame[field].notna().any()}
        height = TOP + LINE * len(frame) + BELOW
        figure = Figure(figsize=(WIDTH, height), layout=None)
        left = min(LONGEST, 0.35 + 0.058 * max(map(len, _lines(frame)))) / WIDTH
        room = (0.97 - left) / len(panels)
        for number, (field, title) in enumerate(panels.items()):
            place = (left + number * room, BELOW / height, room - 0.05, LINE * len(frame) / height)
            axes = figure.add_axes(place)
            axes.set_title(title, fontsize=8)
            _panel(axes, frame, field, named=number == 0)
        dress(figure, TITLE, words, frame, about, [_caption(frame, panels)])
    return figure


def _panel(axes: "Axes", frame: "pandas.DataFrame", field: str, named: bool) -> None:
    windows = sorted(frame["window"].dropna().unique())
    names = _lines(frame)
    columns = (frame[name] for name in (field, f"{field}_low", f"{field}_high", "attention", "window"))
    for at, (value, low, high, attention, window) in enumerate(zip(*columns, strict=True)):
        if not math.isfinite(value):
            continue
        style: dict[str, Any] = look(attention, windows.index(window) if window in windows else 0)
        axes.plot([value], [at], label=names[at], **{**style, "linestyle": "none", "markersize": 5})
        if math.isfinite(low):
            axes.plot([low, high], [at, at], color=style["color"], linewidth=1.3, marker="|", markersize=5, zorder=3)
    if field == "apart":
        axes.axvline(0, color="#8c8c8c", linewidth=0.9, zorder=1)
    axes.set_yticks(range(len(frame)), names, fontsize=7)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.tick_params(axis="y", length=0, labelleft=named)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(True, axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _lines(frame: "pandas.DataFrame") -> list[str]:
    """The attention of each line, with its setting before it where there are several."""
    return [
        f"{where}, {name}" if where else str(name) for where, name in zip(frame["where"], frame["name"], strict=True)
    ]


def _caption(frame: "pandas.DataFrame", panels: dict[str, str]) -> str:
    """What the intervals are over; lines may differ in it."""
    kinds = {over for field in panels for over in frame[f"{field}_over"].dropna()}
    if not kinds:
        return "no interval: fewer than three seeds, and no documents to draw from"
    told = " or, where there are fewer than three, ".join(OVER[kind] for kind in OVER if kind in kinds)
    return f"intervals: 95%, {told}"
