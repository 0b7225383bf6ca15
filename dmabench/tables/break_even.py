"""Where a sparse attention loses to dense attention, and the length from which it no longer does."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from dmabench.summaries.speedups import SHAPE, add_speedups, same_as_baseline
from dmabench.tables.layout import PAPER, SETTINGS, TIE, Layout, marked_id, shared_and_differing, speedup_text

Row = dict[str, Any]

LINE = (*(field for field in SHAPE if field != "seqlen"), "function", "backend", "window", "delta")
"""What the lengths of one line share."""


class BreakEven(NamedTuple):
    """One backend with one setting over the lengths it was timed at beside dense attention."""

    row: Row
    """Its row at the shortest length."""
    lengths: list[int]
    speedups: list[float]
    lost: list[int]
    """Lengths at which it is slower, ties left out."""
    worst: Row
    """The row with the smallest of its speed-ups."""
    length: float | None
    """Where the line of speed-ups crosses 1 for good, None where no two measured lengths have it between them."""


def break_evens(rows: Iterable[Row]) -> list[BreakEven]:
    """Of every setting of every backend that is not dense, in the order of its rows.

    The break-even length is interpolated between the two measured lengths around it, on the logarithms of length and
    speed-up: both are powers of the length or nearly. Nothing is extrapolated. A line that crosses 1 several times has
    its last crossing; one that ends below 1 has none.
    """
    lines: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in add_speedups(rows):
        if row.get("function") != "dense" and row.get("speedup") is not None and row.get("seqlen"):
            lines.setdefault(tuple(row.get(field) for field in LINE), {})[row["seqlen"]] = row
    found = []
    for line in lines.values():
        lengths = sorted(line)
        speedups = [line[length]["speedup"] for length in lengths]
        lost = [length for length in lengths if line[length]["speedup"] < 1 and not same_as_baseline(line[length])]
        worst = min(line.values(), key=lambda row: row["speedup"])
        found.append(BreakEven(line[lengths[0]], lengths, speedups, lost, worst, _crossing(lengths, speedups)))
    return found


def losses(rows: Iterable[Row]) -> Layout | None:
    """A table of every setting of which two lengths were measured: where it loses, how much, and its break-even length.
    None where there is no such setting."""
    lines = [line for line in break_evens(rows) if len(line.lengths) > 1]
    if not lines:
        return None
    fields = [field for field in SETTINGS if field not in ("seqlen", "run")]
    shared, differing = shared_and_differing((line.row for line in lines), fields)
    headers = ["backend", *differing, "T measured", "slower at T", "worst", "break-even T"]
    cells = [
        [
            marked_id(line.row),
            *(show(line.row) for show in differing.values()),
            f"{line.lengths[0]}-{line.lengths[-1]}",
            _listed(line.lost),
            speedup_text(line.worst),
            _told(line),
        ]
        for line in lines
    ]
    notes = ["break-even: interpolated between the two measured lengths around it, never beyond them"]
    notes += [PAPER] * any(line[0].endswith("*") for line in cells)
    notes += [TIE] * any("~" in cell for line in cells for cell in line)
    caption = " · ".join(["Where dense attention wins, and up to which length", *shared])
    return Layout(headers, cells, caption, notes, [line.row for line in lines])


def _crossing(lengths: list[int], speedups: list[float]) -> float | None:
    if speedups[-1] < 1:
        return None
    for at in range(len(lengths) - 1, 0, -1):
        before, after = speedups[at - 1], speedups[at]
        if before < 1:
            share = math.log(1 / before) / math.log(after / before)
            return math.exp((1 - share) * math.log(lengths[at - 1]) + share * math.log(lengths[at]))
    return None


def _told(line: BreakEven) -> str:
    if line.length is not None:
        return f"{float(f'{line.length:.2g}'):.0f}"
    where = "slower at the longest"
    if min(line.speedups) >= 1:
        where = "faster at all"
    elif max(line.speedups) < 1:
        where = "slower at all"
    return f"none measured ({where})"


def _listed(lengths: list[int]) -> str:
    return ", ".join(map(str, lengths)) if len(lengths) < 4 else f"{len(lengths)} lengths to {lengths[-1]}"
