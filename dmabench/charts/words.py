"""What a chart shows, in words, for those who hear it."""

from typing import TYPE_CHECKING

from dmabench.tables.layout import significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12
"""Lines that are told; who listens to more has the table."""


def ends(figure: "Figure") -> str:
    """Each line that has a name (matplotlib's label), with its values at both ends: "Lines: dma/cuda, w 1k 0.344 at
    8192 to 4.34 at 131072; ...". Empty for a chart without any."""
    told = []
    for axes in figure.axes:
        for line in axes.get_lines():
            name = str(line.get_label())
            points = [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y == y]
            if name.startswith("_") or not points:
                continue
            said = [f"{significant(y)} at {x:g}" for x, y in dict.fromkeys((points[0], points[-1]))]
            told.append(f"{name} {' to '.join(said)}")
    more = f"; and {len(told) - MOST} more" if len(told) > MOST else ""
    return f"Lines: {'; '.join(told[:MOST])}{more}." if told else ""
