"""The rows that each figure was drawn from, so that whoever stores a figure can store its numbers beside it."""

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_BEHIND: "WeakKeyDictionary[Figure, pandas.DataFrame]" = WeakKeyDictionary()


def remember(figure: "Figure", frame: "pandas.DataFrame") -> None:
    """Keeps the frame for as long as the figure lives."""
    _BEHIND[figure] = frame


def rows_behind(figure: "Figure") -> "pandas.DataFrame | None":
    """The rows, with every column that has a value in one of them; None for a figure that nobody told of."""
    frame = _BEHIND.get(figure)
    return None if frame is None else frame.dropna(axis="columns", how="all").reset_index(drop=True)
