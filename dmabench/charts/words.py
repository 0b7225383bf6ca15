"""What a chart shows, in words, for those who hear it."""

from typing import TYPE_CHECKING

from dmabench.tables.layout import significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST = 12
"""Lines that are told; who listens to more has the table."""


def points_of(line: "Line2D") -> list[tuple[float, float]]:
    """A line's points, NaN where it has a gap."""
    import numpy as np

    xs, ys = (np.asarray(values, dtype=float) for values in (line.get_xdata(), line.get_ydata()))
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def ends(figure: "Figure") -> str:
    """Each line that has a name (matplotlib's label), with its values at both ends: "Lines: dma/cuda, w 1k 0.344 at
    8k to 4.34 at 128k; ...", with the title of its panel where there are several. Empty for a chart without any."""
    told = []
    for axes in figure.axes:
        marks = {float(x): text.get_text() for x, text in zip(axes.get_xticks(), axes.get_xticklabels(), strict=False)}
        panel = f"{axes.get_title()}: " if len(figure.axes) > 1 and axes.get_title() else ""
        for line in axes.get_lines():
            name = str(line.get_label())
            points = [(x, y) for x, y in points_of(line) if y == y]
            if name.startswith("_") or not points:
                continue
            said = [
                f"{significant(y)} at {marks.get(x) or f'{x:.3g}'}" for x, y in dict.fromkeys((points[0], points[-1]))
            ]
            told.append(f"{panel}{name} {' to '.join(said)}")
    more = f"; and {len(told) - MOST} more" if len(told) > MOST else ""
    return f"Lines: {'; '.join(told[:MOST])}{more}." if told else ""
