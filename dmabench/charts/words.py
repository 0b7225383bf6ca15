"""What a chart shows, in words, for those who hear it."""

from typing import TYPE_CHECKING

from dmabench.tables.layout import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.ma import MaskedArray

MOST = 12
"""Lines that are told; who listens to more has the table."""


def points_of(line: "Line2D") -> list[tuple[float, float]]:
    """A line's points, NaN where it has a gap."""
    import numpy as np

    xs, ys = (np.asarray(values, dtype=float) for values in (line.get_xdata(), line.get_ydata()))
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def cells_of(axes: "Axes") -> "list[MaskedArray]":
    """The values of each heat map in a panel, missing ones masked."""
    import numpy as np
    from matplotlib.collections import QuadMesh

    meshes = [one for one in axes.collections if isinstance(one, QuadMesh)]
    return [np.ma.masked_invalid(np.ma.asarray(mesh.get_array(), dtype=float)) for mesh in meshes]


def ends(figure: "Figure") -> str:
    """Each line that has a name (matplotlib's label), with its values at both ends: "Lines: dma/cuda, w 1k 0.344 at
    8k to 4.34 at 128k; ...", with the title of its panel where there are several. Values are those across where words
    stand along the y axis. Empty for a chart without any."""
    told = []
    for axes in figure.axes:
        across = _has_words(axes.yaxis)
        marks = _marks(axes.yaxis if across else axes.xaxis)
        panel = f"{axes.get_title()}: " if len(figure.axes) > 1 and axes.get_title() else ""
        for line in axes.get_lines():
            name = str(line.get_label())
            points = [(y, x) if across else (x, y) for x, y in points_of(line) if y == y]
            if name.startswith("_") or not points:
                continue
            said = [
                significant(y) + f" at {where}" * (where != name)
                for x, y in dict.fromkeys((points[0], points[-1]))
                for where in [marks.get(x) or _number(x)]
            ]
            told.append(f"{panel}{name} {' to '.join(said)}")
    more = f"; and {len(told) - MOST} more" if len(told) > MOST else ""
    return f"Lines: {'; '.join(told[:MOST])}{more}." if told else ""


def times(ratio: float) -> str:
    """A ratio on an axis: 4x, 0.7x, 1/2x."""
    return f"1/{1 / ratio:g}x" if ratio < 1 and (1 / ratio).is_integer() else f"{ratio:g}x"


def _marks(axis: "Axis") -> dict[float, str]:
    """Place -> what is written there, or would be if it did not stand beside the panel before."""
    places = axis.get_ticklocs()
    return dict(zip(map(float, places), axis.get_major_formatter().format_ticks(list(places)), strict=True))


def _has_words(axis: "Axis") -> bool:
    return any(word[:1].isalpha() for word in _marks(axis).values())


def _number(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
