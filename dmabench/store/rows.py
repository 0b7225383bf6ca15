"""Rows of `dmabench kernels`: one flat object a cell, the same fields whatever its status (null where none applies)."""

import statistics
from typing import Any

from dmabench.workload.cells import Cell

STATUSES = (
    "PASSED",
    "INCORRECT",
    "OUT_OF_MEMORY",
    "UNSUPPORTED",
    "COMPILE_ERROR",
    "RUNTIME_ERROR",
    "TIMEOUT",
)
FAILURES = ("INCORRECT", "COMPILE_ERROR", "RUNTIME_ERROR", "TIMEOUT")
"""Statuses that make the command exit with 1; running out of memory and not being supported are results."""

# cache_mib: what decoding keeps of the tokens seen. settings: the sizes of nsa. padded_heads: query heads a group is
# padded to, where it is; such a time is an upper bound.
FIELDS = (
    "importance_ms",
    "plan_ms",
    "kernel_ms",
    "gpu_ms",
    "wall_ms",
    "total_ms",
    "total_is",
    "p10_ms",
    "p90_ms",
    "samples",
    "stopped",
    "compile_s",
    "peak_mib",
    "cache_mib",
    "useful_tflops",
    "executed_tflops",
    "roof_percent",
    "roof_tflops",
    "roof_gbs",
    "density",
    "live_keys",
    "settings",
    "padded_heads",
    "speedup",
    "error",
    "error_budget",
)


def _empty(cell: Cell, status: str, reason: str | None) -> dict[str, Any]:
    return {"cell": cell.id, **cell.settings(), "status": status, "reason": reason, **dict.fromkeys(FIELDS)}


def failure(cell: Cell, status: str, reason: str, verdict: Any = None) -> dict[str, Any]:
    """The row of a cell that has no time; a verdict adds its error and budget."""
    row = _empty(cell, status, reason)
    if verdict is not None:
        row["error"], row["error_budget"] = _finite(verdict.error), _finite(verdict.budget)
    return row


def success(cell: Cell, samples: Any, facts: dict[str, Any], work: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    """The row of a timed cell, and its raw samples.

    Args:
        samples: rounds.Samples.
        facts: row fields found while checking (compile_s, peak_mib, error, ...), the measured roofs, and whether
            `replayed`: the region was a CUDA graph.
        work: density, flops and executed_flops (operations), bytes.
    """
    row = _empty(cell, "PASSED", None)
    gpu = statistics.median(samples.gpu_ms) if samples.gpu_ms else None
    wall = statistics.median(samples.wall_ms)
    total_is, total, spread = "wall", wall, samples.wall_ms
    if gpu is not None and gpu >= wall:
        total_is, total, spread = "gpu", gpu, samples.gpu_ms
    if facts.get("replayed"):
        total_is = "graph"
    parts = {name: statistics.median(values) for name, values in samples.parts.items()}
    row |= {**parts, "gpu_ms": gpu, "wall_ms": wall, "total_ms": total, "total_is": total_is}
    if row["kernel_ms"] is None and cell.shape.pass_ != "fwd+bwd" and cell.shape.level == "kernel":
        row["kernel_ms"] = gpu if gpu is not None else wall  # the region is the kernel alone
    row |= {"p10_ms": _quantile(spread, 0.1), "p90_ms": _quantile(spread, 0.9), "samples": len(spread)}
    row |= {name: value for name, value in facts.items() if name in FIELDS}
    kernel_s = (row["kernel_ms"] or total) * 1e-3
    floor_s = max(work["flops"] / (facts["roof_tflops"] * 1e12), work["bytes"] / (facts["roof_gbs"] * 1e9))
    row |= {
        "stopped": samples.stopped,
        "density": work["density"],
        "useful_tflops": work["flops"] / kernel_s * 1e-12,
        "executed_tflops": work["executed_flops"] / kernel_s * 1e-12,
        "roof_percent": 100 * floor_s / kernel_s,
    }
    times = {"gpu_ms": samples.gpu_ms, "wall_ms": samples.wall_ms, **samples.parts}
    raw = {"cell": cell.id, "turns": samples.turns, **times}
    return row, raw


def _quantile(values: list[float], q: float) -> float:
    """Nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def _finite(x: float) -> float | None:
    """JSON has no infinity."""
    return x if x == x and abs(x) != float("inf") else None
