"""A comparison of two runs as a table, as sentences under it, and for machines."""

from collections.abc import Callable, Sequence
from typing import Any

from dmabench.compare.verdicts import COMPARED, STATUS_CHANGES, Compared, Comparison
from dmabench.summaries.lints import names
from dmabench.tables.layout import PAPER, SETTINGS, Layout, marked_id, shared_and_differing, significant

Row = dict[str, Any]

TIME_WORDS = {
    "gpu": "device time",
    "wall": "wall time",
    "total": "total time",
    "importance": "time of the importance",
    "plan": "time of the plan",
    "kernel": "time of the kernel",
}
COLOURS = {"SLOWER": "red", "WORSE": "red", "FASTER": "green", "BETTER": "green", "UNSURE": "yellow", "SAME": "dim"}
FIELDS = tuple(field for field in SETTINGS if field not in ("device", "run"))


def colour(line: Row) -> str:
    """The style of a line of the table."""
    return COLOURS.get(line["verdict"], "")


def layout(comparison: Comparison, time: str, width: int | None = None) -> Layout:
    """The cells that have a time in one run at least, in the order of A. A field that all share stands in the caption,
    a status where there is no time, and its reason under the table."""
    cells = [cell for cell in comparison.cells if cell.verdict != "NOT TIMED"]
    shared, differing = shared_and_differing((cell.a for cell in cells), FIELDS)
    caption = [TIME_WORDS[time], *shared]
    marks = _marks(cells)
    columns: dict[str, Callable[[Compared], str]] = {
        "backend": lambda cell: marked_id(cell.a if cell.a.get("status") == "PASSED" else cell.b)
    }
    for header, show in differing.items():
        columns[header] = lambda cell, show=show: show(cell.a)  # type: ignore[misc]
    columns |= {
        "A ms": lambda cell: _timed(cell.a, cell.a_ms, marks),
        "B ms": lambda cell: _timed(cell.b, cell.b_ms, marks),
        "B/A": lambda cell: _ratio(cell.ratio.value) if cell.ratio else "",
        "interval": lambda cell: f"{_ratio(cell.ratio.low)}-{_ratio(cell.ratio.high)}" if cell.ratio else "",
        "verdict": lambda cell: cell.verdict,
    }
    notes = [f"{mark} {reason}" for reason, mark in marks.items()]
    lines = _lines(cells, columns)
    if any(line[0].endswith("*") for line in lines):
        notes.append(PAPER)
    if width is not None and _width(columns, lines) > width:
        del columns["interval"]
        lines = _lines(cells, columns)
        notes.append(f"left out to fit {width} columns: interval (all of it: --json)")
    return Layout(list(columns), lines, " · ".join(caption), notes, [{"verdict": cell.verdict} for cell in cells])


def sums(comparison: Comparison) -> list[str]:
    """How many cells got which verdict, the geometric mean of their ratios, and what only one run has."""
    counts = comparison.counts()
    told = [f"{counts[verdict]} {verdict}" for verdict in (*COMPARED, *STATUS_CHANGES) if verdict in counts]
    if "NOT TIMED" in counts:
        told.append(f"{counts['NOT TIMED']} timed in neither")
    total = sum(counts.values())
    sentences = [f"{total} cell{'s' * (total != 1)} in both: {', '.join(told)}."]
    means = comparison.geometric_means()
    if means:
        parts = [f"{name} {value:.3f}" for name, value in means.items() if name != "all"]
        sentences.append(
            f"Geometric mean of B/A: {means['all']:.3f}" + (f" ({', '.join(parts)})." if len(parts) > 1 else ".")
        )
    for name, rows in (("A", comparison.only_a), ("B", comparison.only_b)):
        if rows:
            sentences.append(f"Only in {name}, {len(rows)} cell{'s' * (len(rows) != 1)}: {names(rows)}.")
    return sentences


def regressions(cells: Sequence[Compared]) -> list[str]:
    """The cells that regressed, a sentence for each change of a status and one for all that are slower."""
    found: dict[str, list[Compared]] = {}
    for cell in cells:
        change = "slower" if cell.ratio else f"{cell.a.get('status')} -> {cell.b.get('status')}"
        found.setdefault(change, []).append(cell)
    told = []
    for change, group in found.items():
        ratios = [cell.ratio.value for cell in group if cell.ratio]
        times = f" by {significant(100 * max(ratios) - 100)}% at most" if ratios else ""
        told.append(f"{change}{times}: {names([cell.b for cell in group], limit=6)}")
    return told


def cell_as_json(cell: Compared, share: float | None) -> Row:
    """A cell as one flat object."""
    ratio = cell.ratio
    return {
        **{field: cell.a.get(field) for field in ("function", "backend", *FIELDS)},
        "status_a": cell.a.get("status"),
        "status_b": cell.b.get("status"),
        "a_ms": cell.a_ms,
        "b_ms": cell.b_ms,
        "ratio": ratio.value if ratio else None,
        "ratio_low": ratio.low if ratio else None,
        "ratio_high": ratio.high if ratio else None,
        "verdict": cell.verdict,
        "regressed": None if share is None else cell.regressed(share),
    }


def _lines(cells: list[Compared], columns: dict[str, Callable[[Compared], str]]) -> list[list[str]]:
    return [[show(cell) for show in columns.values()] for cell in cells]


def _width(columns: dict[str, Any], lines: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 1 for column in zip(columns, *lines, strict=True)) - 1


def _marks(cells: list[Compared]) -> dict[str, str]:
    """A number for every reason that a row of a changed status gives."""
    reasons = [_reason(row) for cell in cells if cell.verdict in STATUS_CHANGES for row in (cell.a, cell.b)]
    return {reason: f"[{number}]" for number, reason in enumerate(dict.fromkeys(filter(None, reasons)), start=1)}


def _reason(row: Row) -> str:
    return "" if row.get("status") == "PASSED" else " ".join(str(row.get("reason") or "").split())


def _timed(row: Row, ms: float | None, marks: dict[str, str]) -> str:
    return significant(ms) if row.get("status") == "PASSED" else f"{row.get('status')}{marks.get(_reason(row), '')}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 10 else significant(value)
