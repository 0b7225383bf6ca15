"""What stands in a table of rows, before anything draws it: which columns, which text, what is said once for all."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dmabench.summaries.speedups import same_as_baseline

Row = dict[str, Any]
SHAPES = ("seqlen", "window", "batch", "heads", "kv_heads", "head_dim")
WORDS = ("backend", "pass", "delta", "status", "device", "dtype", "level", "run")
"""Headers of columns that hold words: set left, where numbers are set right."""

# What the caption says once when all rows agree on it: field, and the words before it.
SHARED = {
    "device": "",
    "level": "level ",
    "pass": "pass ",
    "seqlen": "T ",
    "window": "w ",
    "delta": "delta ",
    "batch": "B ",
    "heads": "H ",
    "kv_heads": "G ",
    "head_dim": "D ",
    "dtype": "",
    "run": "run ",
}

HEADERS = {"seqlen": "T", "window": "w", "batch": "B", "heads": "H", "kv_heads": "G", "head_dim": "D"}
SETTINGS = ("pass", "level", *SHAPES[:2], "delta", *SHAPES[2:], "dtype", "device", "run")
"""Fields that are columns where rows differ in them, in this order."""
PAPER = "* the paper's settings; with w, as many keys a query as the others"
TIE = "~ the same: the p10-p90 interval overlaps that of the fastest dense row"


class Layout(NamedTuple):
    """A table before it is drawn: headers, text cells, the line above and the notes below, and the row of each line."""

    headers: list[str]
    cells: list[list[str]]
    caption: str
    notes: list[str]
    rows: list[Row]


def backend_id(row: Row) -> str:
    """function/backend, the name that the command line's globs match."""
    return f"{row.get('function')}/{row.get('backend')}"


def marked_id(row: Row) -> str:
    """The id with * for native sparse attention with its paper's settings, and † for padded heads."""
    return backend_id(row) + ("*" if _paper(row) else "") + ("†" if row.get("padded_heads") else "")


def shared_and_differing(
    rows: Iterable[Row], fields: Sequence[str] = SETTINGS
) -> tuple[list[str], dict[str, Callable[[Row], str]]]:
    """What a caption says of the fields that all rows share (a row that has none shares it too), and a column, its
    header and its cell, for each field in which they differ."""
    rows = list(rows)
    values = {field: {row[field] for row in rows if row.get(field) is not None} for field in fields}
    told = [
        f"{words}{next(iter(values[field]))}"
        for field, words in SHARED.items()
        if field != "run" and len(values.get(field, ())) == 1
    ]
    columns: dict[str, Callable[[Row], str]] = {}
    for field in fields:
        if len(values[field]) > 1:
            columns[HEADERS.get(field, field)] = lambda row, field=field: _text(row.get(field))  # type: ignore[misc]
    return told, columns


def layout(rows: list[Row], width: int | None = None) -> Layout:
    """Headers, cells, caption and notes of a table of these rows, at most `width` columns wide (None: any).

    A field that all rows share goes into the caption; where it gets too wide, columns are merged, then left out. A
    backend that could run nowhere, always for the same reason, is one line at the end."""
    shared, differing = shared_and_differing(rows)
    caption = " · ".join(shared)
    rows = _one_line_a_missing_backend(rows, [field for field in SETTINGS if HEADERS.get(field, field) in differing])
    notes: list[str] = []
    marks = _reason_notes(rows, notes)

    # Header, cell, in the order of the table; a shared field is a column only where the rows differ in it.
    columns: dict[str, Callable[[Row], str]] = {"backend": marked_id}
    columns |= differing
    columns["status"] = lambda row: _text(row.get("status")) + marks.get(_reason(row), "")
    columns |= MEASURED
    for header in ("imp.", "plan", "kernel"):  # a layer is not timed in parts
        if any(row.get("total_ms") for row in rows) and not any(MEASURED[header](row) for row in rows):
            del columns[header]
    if any(row.get("cache_mib") is not None for row in rows):
        columns["cache MiB"] = _field("cache_mib", significant)
    left_out = []
    for drop in (None, "merge", "shorten", "TFLOP/s", "density", "err%", "prep."):
        if drop == "merge" and "plan" in columns:
            columns = _merge_preparation(columns)
        elif drop == "shorten":
            columns = {("err%" if header == "err/budget" else header): cell for header, cell in columns.items()}
            columns["err%"] = _error_percent
        elif drop in columns:
            del columns[drop]
            left_out.append(drop)
        cells = [[cell(row) for cell in columns.values()] for row in rows]
        widths = [max([len(header), *(len(line[at]) for line in cells)]) for at, header in enumerate(columns)]
        if width is None or sum(widths) + len(widths) - 1 <= width:
            break
    if any(_paper(row) for row in rows):
        notes.append(PAPER)
    if any(row.get("padded_heads") for row in rows):
        notes.append("† heads padded to 16: an upper bound, in no headline ratio")
    if any("~" in cell for line in cells for cell in line):
        notes.append(TIE)
    if "prep." in columns:
        notes.append("prep. = importance + plan")
    if "err%" in columns:
        notes.append("err% = error in percent of its budget")
    if left_out:
        notes.append(f"left out to fit {width} columns: {', '.join(left_out)} (all of it: --json)")
    return Layout(list(columns), cells, caption, notes, rows)


def _paper(row: Row) -> bool:
    return row.get("function") == "nsa" and row.get("window") is None and row.get("status") == "PASSED"


def _one_line_a_missing_backend(rows: list[Row], differing: list[str]) -> list[Row]:
    """Forty lines that say "not built" hide what was measured: they become one, "all" in the columns that differ."""
    of_backend: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        # By device and run as well: what one machine lacks another may have.
        key = (backend_id(row), row.get("device"), row.get("run"))
        of_backend.setdefault(key, []).append(row)
    kept, missing = [], []
    for row in rows:
        same = of_backend[backend_id(row), row.get("device"), row.get("run")]
        if len(same) == 1 or {(one.get("status"), _reason(one)) for one in same} != {("UNSUPPORTED", _reason(row))}:
            kept.append(row)
        elif row is same[0]:
            several = {field for field in differing if len({one.get(field) for one in same}) > 1}
            missing.append({**row, **dict.fromkeys(several, "all")})
    return kept + missing


def _merge_preparation(columns: dict[str, Callable[[Row], str]]) -> dict[str, Callable[[Row], str]]:
    merged: dict[str, Callable[[Row], str]] = {}
    for header, cell in columns.items():
        if header == "imp.":
            merged["prep."] = lambda row: significant(_sum(row.get("importance_ms"), row.get("plan_ms")))
        elif header != "plan":
            merged[header] = cell
    return merged


def _reason_notes(rows: list[Row], notes: list[str]) -> dict[str, str]:
    """Numbers the reasons in the order of the rows, fills `notes`, and returns the mark of each reason."""
    marks: dict[str, str] = {}
    for row in rows:
        reason = _reason(row)
        if reason and reason not in marks:
            marks[reason] = f"[{len(marks) + 1}]"
            notes.append(f"[{len(marks)}] {reason}")
    return marks


def _reason(row: Row) -> str:
    """Why a row is not PASSED, on one line."""
    return "" if row.get("status") == "PASSED" else " ".join(str(row.get("reason") or "").split())


def speedup_text(row: Row) -> str:
    """The speed-up of a row from add_speedups, with ~ where it is no winner."""
    if row.get("speedup") is None:
        return ""
    return f"{significant(row['speedup'])}x" + ("~" if same_as_baseline(row) else "")


def _error(row: Row) -> str:
    error, budget = row.get("error"), row.get("error_budget")
    if error is None or not budget:
        return ""
    return f"{error:.0e}/{budget:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def _error_percent(row: Row) -> str:
    error, budget = row.get("error"), row.get("error_budget")
    return "" if error is None or not budget else f"{100 * error / budget:.0f}%"


def _field(name: str, show: Callable[[float | None], str]) -> Callable[[Row], str]:
    """The cell of a measured field: empty unless the row PASSED, since a failed row has no time to show."""
    return lambda row: show(row.get(name)) if row.get("status") == "PASSED" else ""


def significant(value: float | None) -> str:
    """Three significant digits, at most three decimals and no exponent; whole numbers from 100 on."""
    if value is None:
        return ""
    size = abs(value)
    if 0 < size < 0.0005:
        return "<0.001"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g}%"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


MEASURED: dict[str, Callable[[Row], str]] = {
    "imp.": _field("importance_ms", significant),
    "plan": _field("plan_ms", significant),
    "kernel": _field("kernel_ms", significant),
    "total ms": _field("total_ms", significant),
    "speed-up": speedup_text,
    "density": _field("density", _percent),
    "TFLOP/s": _field("useful_tflops", significant),
    "err/budget": _error,
}
