"""The one headline ratio: a row's total against the fastest correct dense row of the same run and shape."""

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

# What two rows must share to be compared. Not the window and not delta: dense attention has neither. The run is among
# them so that two commits or two sittings are never mixed.
SHAPE = ("run", "device", "pass", "level", "batch", "heads", "kv_heads", "head_dim", "dtype", "seqlen")


def shape_of(row: Row) -> tuple[Any, ...]:
    """The fields that two rows must share to be compared."""
    return tuple(row.get(field) for field in SHAPE)


def fastest_dense(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """The fastest PASSED dense row of every shape, by total_ms."""
    fastest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.get("function") != "dense" or row.get("status") != "PASSED" or not row.get("total_ms"):
            continue
        if row.get("padded_heads"):
            continue
        best = fastest.get(shape_of(row))
        if best is None or row["total_ms"] < best["total_ms"]:
            fastest[shape_of(row)] = row
    return fastest


def add_speedups(rows: Iterable[Row]) -> list[Row]:
    """Copies of the rows with `speedup` = total_ms of the fastest correct dense row of the same run, device, pass and
    shape / own total_ms; None without a time of its own or a dense row to compare with, and for padded heads, whose
    time is an upper bound.

    Also sets `baseline` (backend of that dense row), `baseline_p10_ms` and `baseline_p90_ms`.
    """
    rows = list(rows)
    fastest = fastest_dense(rows)
    compared = []
    for row in rows:
        base = fastest.get(shape_of(row))
        timed = row.get("status") == "PASSED" and row.get("total_ms") and not row.get("padded_heads")
        compared.append(
            {
                **row,
                "speedup": base["total_ms"] / row["total_ms"] if base and timed else None,
                "baseline": base.get("backend") if base else None,
                "baseline_p10_ms": base.get("p10_ms") if base else None,
                "baseline_p90_ms": base.get("p90_ms") if base else None,
            }
        )
    return compared


def same_as_baseline(row: Row) -> bool:
    """True when the p10-p90 interval of a row (from add_speedups) overlaps that of its dense row: no winner."""
    if row.get("speedup") is None or (row.get("function") == "dense" and row.get("backend") == row.get("baseline")):
        return False
    bounds = [row.get(field) for field in ("p10_ms", "p90_ms", "baseline_p10_ms", "baseline_p90_ms")]
    if any(bound is None for bound in bounds):
        return False
    low, high, base_low, base_high = bounds
    return bool(low <= base_high and base_low <= high)  # type: ignore[operator]
