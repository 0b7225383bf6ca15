"""What a reader should doubt about a table of timings, one sentence each. Printed under every table."""

from collections.abc import Callable, Iterable
from typing import Any

from dmabench.summaries.speedups import add_speedups, fastest_dense, same_as_baseline, shape_of

Row = dict[str, Any]


def lints(rows: Iterable[Row], gpu_state: dict[str, Any] | None = None) -> list[str]:
    """Sentences about what weakens the comparison; an empty list when nothing does.

    Give the rows of one run or of several (each row is compared within its own run). gpu_state is a manifest's, for
    cards that were throttled when the run ended.
    """
    rows = add_speedups(rows)
    timed = [row for row in rows if row.get("status") == "PASSED" and row.get("total_ms")]
    bases = fastest_dense(rows)
    others = [row for row in timed if row.get("function") != "dense"]
    found = [
        (
            [row for row in others if shape_of(row) not in bases],
            "no dense row to compare with (rerun without --no-dense)",
        ),
        (
            # 2% for rounding and timer noise; beyond it the baseline is slow, or the two compute different functions.
            # Latent attention is left out: it computes every pair, and reads less for each.
            [row for row in others if row.get("speedup") and row.get("density") and _too_fast(row)],
            "the speed-up is above 1/density, more than the pairs left out explain: the dense baseline is slow",
        ),
        (
            [row for row in bases.values() if row.get("roof_percent") is not None and row["roof_percent"] < 20],
            "the dense baseline reaches under 20% of the measured roof: speed-ups over it are flattered",
        ),
        (
            [row for row in timed if same_as_baseline(row)],
            'the p10-p90 interval overlaps that of the fastest dense row: verdict "same"',
        ),
        (
            [row for row in timed if _spread(row) > 0.05],
            "noisy: (p90 - p10) / median is above 5%",
        ),
        (
            # Both are medians, so this needs a machine that was slower in one half of the samples than in the other.
            [row for row in timed if row.get("kernel_ms") and row["kernel_ms"] > 1.2 * row["total_ms"]],
            "the kernel alone took longer than the whole call: something else was using the machine",
        ),
        (
            [row for row in timed if row.get("throttled")],
            "the GPU was throttled while it was measured",
        ),
        (
            [row for row in timed if row.get("wall_ms") and row.get("gpu_ms") and row["wall_ms"] > 1.1 * row["gpu_ms"]],
            "host-bound: wall time is over 1.1 times GPU time, launches are part of it",
        ),
        (
            [row for row in timed if row.get("window") and row.get("seqlen") and row["seqlen"] <= row["window"]],
            "the sequence is no longer than the window: nothing is sparse here",
        ),
        (
            [row for row in timed if row.get("function") == "nsa" and (row.get("density") or 0) > 1],
            "reads more query-key pairs than dense attention has: nothing is sparse here",
        ),
    ]
    sentences = [f"{names(affected)}: {text}." for affected, text in found if affected]
    throttled = [state for state in (gpu_state or {}).get("after") or [] if state.get("throttled")]
    if throttled:
        reasons = sorted({reason for state in throttled for reason in state.get("reasons") or []})
        sentences.append(f"A GPU was throttled when the run ended ({', '.join(reasons)}).")
    return sentences


def _too_fast(row: Row) -> bool:
    return bool(row.get("function") != "mla" and row["speedup"] > 1.02 / row["density"])


def _spread(row: Row) -> float:
    if row.get("p10_ms") is None or row.get("p90_ms") is None:
        return 0.0
    return float((row["p90_ms"] - row["p10_ms"]) / row["total_ms"])


def names(rows: list[Row], limit: int = 3) -> str:
    """The rows by backend, each with the lengths and passes concerned; the rest counted."""
    by_backend: dict[str, list[Row]] = {}
    for row in rows:
        by_backend.setdefault(f"{row.get('function')}/{row.get('backend')}", []).append(row)
    named = [f"{name} ({_where(group)})" for name, group in list(by_backend.items())[:limit]]
    rest = len(by_backend) - limit
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def _where(rows: list[Row]) -> str:
    parts: list[tuple[str, Callable[[Row], Any]]] = [
        ("", lambda row: row.get("pass")),
        ("T ", lambda row: row.get("seqlen")),
        ("w ", lambda row: row.get("window")),
    ]
    words = []
    for prefix, value in parts:
        values = list(dict.fromkeys(value(row) for row in rows if value(row) is not None))
        if values:
            shown = ", ".join(str(item) for item in values[:4]) + (" ..." if len(values) > 4 else "")
            words.append(prefix + shown)
    return "; ".join(words)
