"""What the charts of trained models share: colours of the attentions, words around a figure, grids of numbers."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dmabench.charts.data import remember
from dmabench.charts.style import DASHES
from dmabench.summaries.controls import UNDERTRAINED
from dmabench.summaries.tasks import varying
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
# Dense in black, as in the charts of kernels; DMA and the sliding window have their colours of there too.
COLOURS = {"mha": "#000000", "swa": "#CC79A7", "mla": "#009E73", "nsa": "#D55E00", "dma": "#0072B2"}
OTHER = "#E69F00"
MARKERS = {"mha": "o", "swa": "v", "mla": "D", "nsa": "s", "dma": "^"}
HATCH = "////"
HATCHED = "#bdbdbd"
PAPER, INK = "#fefefe", "#111111"
"""Text on coloured cells: not the colours that turn over on a dark page, since the cells stay as they are."""


def look(attention: str, number: int = 0) -> dict[str, Any]:
    """Line and marker of an attention; `number` tells its windows apart."""
    colour = COLOURS.get(attention, OTHER)
    return {
        "color": colour,
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.3,
        "marker": MARKERS.get(attention, "P"),
        "markersize": 4,
        "markerfacecolor": "white" if number else colour,
        "zorder": 4,
    }


def legend_beside(axes: "Axes", size: float = 7, title: str | None = None) -> None:
    """A legend on the right of the axes, where it covers nothing; none where nothing has a name."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=size, title=title, title_fontsize=size
    )


def dress(
    figure: "Figure",
    title: str,
    words: Iterable[str],
    frame: "pandas.DataFrame",
    about: dict[str, str],
    notes: Iterable[str] = (),
) -> None:
    """Title, settings, notes and footer, at fixed distances from the edges whatever the figure's height. The frame is
    remembered as what the figure was drawn from."""
    remember(figure, frame)
    _, height = figure.get_size_inches()
    figure.text(0.02, 1 - 0.13 / height, title, fontsize=9.5, weight="bold", va="top")
    figure.text(0.02, 1 - 0.33 / height, "  ·  ".join(words), fontsize=7, color="#444444", va="top")
    seeds = sorted(frame.loc[frame["seeds"] > 0, "seeds"].unique())
    count = "-".join(str(int(one)) for one in dict.fromkeys([seeds[0], seeds[-1]])) if seeds else "0"
    devices = ", ".join(dict.fromkeys(frame["device"].dropna())) if "device" in frame else ""
    parts = [devices, about.get("versions") or "", about.get("commit") or ""]
    parts += [f"{count} seed{'s' * (count != '1')}"]
    told = list(notes)
    if frame["status"].eq(UNDERTRAINED).any():
        told.append("hatched: UNDERTRAINED, the MHA control has not learned it")
    figure.text(0.02, 0.24 / height, "  ·  ".join(told), fontsize=6.5, color="#666666")
    figure.text(0.02, 0.09 / height, "  ·  ".join(part for part in parts if part), fontsize=6.5, color="#666666")


def apart(task: Task, frame: "pandas.DataFrame", within: Iterable[str]) -> "list[pandas.DataFrame]":
    """The frame by the settings that no axis of a figure shows: a figure for each."""
    own = [axis.name for axis in task.axes if axis.of_model]
    names = varying(task, rows_of(frame), [*within, "attention", "lr", "seed", *own])
    if not names:
        return [frame]
    return [part for _, part in frame.groupby(names, dropna=False, sort=True)]


def rows_of(frame: "pandas.DataFrame") -> list[Row]:
    """The rows of a frame as they were, without the blanks that a frame fills gaps with."""
    return [{name: value for name, value in row.items() if not _blank(value)} for row in frame.to_dict("records")]


def stem_of(kind: str, task: Task, figures: dict[str, Any]) -> str:
    """A file name that none of the figures has."""
    first = re.sub(r"[^a-z0-9-]+", "-", f"{task.name}-{kind}".lower()).strip("-")
    number, stem = 2, first
    while stem in figures:
        stem, number = f"{first}-n{number}", number + 1
    return stem


def grid(
    axes: "Axes",
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    hatched: Sequence[Sequence[bool]],
    colours: str,
    limits: tuple[float, float],
) -> Any:
    """Coloured cells with text, the first row at the top; NaN is an empty cell. Returns what a colour bar needs."""
    import numpy
    from matplotlib.patches import Rectangle

    table = numpy.ma.masked_invalid(numpy.asarray(values, float))
    missing = numpy.ma.getmaskarray(table)
    cells = axes.pcolormesh(
        table, cmap=colours, vmin=limits[0], vmax=limits[1], edgecolors="white", linewidth=0.6, snap=True
    )
    for y, x in numpy.ndindex(table.shape):
        if missing[y, x]:
            axes.text(x + 0.5, y + 0.5, texts[y][x], ha="center", va="center", fontsize=5.5, color="#757575")
            continue
        red, green, blue, _ = cells.cmap(cells.norm(table[y, x]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        if hatched[y][x]:
            look: dict[str, Any] = {"fill": False, "hatch": HATCH, "linewidth": 0, "edgecolor": "#999999"}
            axes.add_patch(Rectangle((x, y), 1, 1, **look))
        ink = PAPER if dark else INK
        axes.text(x + 0.5, y + 0.5, texts[y][x], ha="center", va="center", fontsize=6.5, color=ink)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return cells


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
