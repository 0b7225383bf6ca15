"""Two runs of `dmabench kernels`, cell by cell: is B faster than A, slower, the same, or is it too noisy to say?

A verdict needs an interval and a size. What the interval of a ratio B / A is made of, all on logarithms:

- the spread within each run: a bootstrap of the median that draws whole turns (intervals.median_of_blocks), since the
  samples of one turn are correlated;
- the drift from one process to the next, which no sample of a run shows (DRIFT, or what the dense cells of the two
  runs show where nothing of theirs changed: controls_drift).

SLOWER and FASTER: the interval excludes 1 and the ratio is off by more than SMALLEST. SAME: neither, and the interval
is narrow enough that a difference of RESOLUTION would have been seen. UNSURE: it is not.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from dmabench.statistics.intervals import CONFIDENCE, Estimate, difference, median_of_blocks
from dmabench.store.rows import FAILURES

Row = dict[str, Any]

DRIFT = 0.007
"""Standard deviation of the logarithm of a median from process to process, which no number of samples lessens. Ratios
of device times of the same kernels in two sittings had, beyond what their samples explain, 0.5% on two H200s (7
backward cells of results/reference/h200) and 1.2% on two H100s (18 forward cells of .../h100): 0.4 and 0.9% a run."""
SMALLEST = 0.03
"""Smallest difference that is called one: three standard deviations of a ratio that has DRIFT twice in it, so that
comparing a run with its repetition calls nothing faster or slower, and a change of 5% is still found."""
RESOLUTION = 0.05
"""SAME promises that a difference of this size would have been seen: it is what people ask --fail-on for."""
BLOCKS = 5
"""Blocks of runs that were stored without their turns: no cell takes fewer samples."""
CONTROLS = 5
"""Dense cells that it takes to tell a machine's drift from them."""

SHAPE = ("pass", "level", "seqlen", "window", "batch", "heads", "kv_heads", "head_dim", "dtype", "delta")
KEY = ("function", "backend", *SHAPE)
"""What makes two cells the same measurement. Not the seed nor the device: two cards are compared, and it is said."""
TIMES = ("gpu", "wall", "total", "importance", "plan", "kernel")
COMPARED = ("SAME", "FASTER", "SLOWER", "UNSURE")
STATUS_CHANGES = ("WORSE", "BETTER", "CHANGED")


class Compared(NamedTuple):
    """One cell of both runs."""

    a: Row
    b: Row
    verdict: str
    """One of COMPARED or STATUS_CHANGES, or NOT TIMED: neither run has a time, for the same reason."""
    a_ms: float | None = None
    b_ms: float | None = None
    ratio: Estimate | None = None
    """B over A with its interval; None where a time or its samples are missing."""

    def regressed(self, share: float) -> bool:
        """Slower by more than the share, the whole interval; or a status that got worse."""
        return self.verdict == "WORSE" or (self.ratio is not None and self.ratio.low > 1 + share)


class Comparison(NamedTuple):
    """All cells of two runs."""

    cells: list[Compared]
    only_a: list[Row]
    only_b: list[Row]
    drift: float
    """Standard deviation of the logarithm of a ratio from process to process that the intervals hold."""

    def counts(self) -> dict[str, int]:
        """Cells by verdict, those that there are."""
        found = [cell.verdict for cell in self.cells]
        return {
            verdict: found.count(verdict) for verdict in (*COMPARED, *STATUS_CHANGES, "NOT TIMED") if verdict in found
        }

    def geometric_means(self) -> dict[str, float]:
        """Geometric mean of B / A over the cells timed in both, by function and, under "all", of all."""
        logs: dict[str, list[float]] = {}
        for cell in self.cells:
            if cell.ratio is not None:
                for name in ("all", str(cell.a["function"])):
                    logs.setdefault(name, []).append(math.log(cell.ratio.value))
        return {name: math.exp(statistics.fmean(values)) for name, values in logs.items()}


class Measured(NamedTuple):
    """What is stored of one run: its rows, and its samples by cell id."""

    rows: list[Row]
    samples: dict[str, Row]


def compare(a: Measured, b: Measured, time: str = "gpu", alike: bool = True) -> Comparison:
    """Compares the cells that both runs have; a cell that was measured twice counts as it was last.

    Args:
        time: which time, of TIMES. "gpu" is device time, and wall time where there is none, as on a CPU; "total" is
            what speed-ups are of, with what the host takes.
        alike: whether both ran on the same kind of device with the same libraries, so that dense cells, which are not
            ours, must take the same time, and what they differ by is drift.
    """
    rows_a, rows_b = _by_key(a.rows), _by_key(b.rows)
    common = [key for key in rows_a if key in rows_b]
    timed = {}
    for key in common:
        medians = [_median(run, row, time) for run, row in ((a, rows_a[key]), (b, rows_b[key]))]
        if all(medians):
            timed[key] = difference(medians[1], medians[0])  # type: ignore[arg-type]
    controls = [ratio for key, ratio in timed.items() if rows_a[key]["function"] == "dense"]
    drift = max(math.sqrt(2) * DRIFT, controls_drift(controls) if alike else 0.0)
    return Comparison(
        [_compared(a, b, rows_a[key], rows_b[key], timed.get(key), drift, time) for key in common],
        [row for key, row in rows_a.items() if key not in rows_b],
        [row for key, row in rows_b.items() if key not in rows_a],
        drift,
    )


def controls_drift(ratios: Sequence[Estimate]) -> float:
    """Standard deviation of logarithms of ratios from 0 beyond what their intervals (CONFIDENCE) explain; robust, and 0
    for fewer than CONTROLS of them. The machine was as unsteady for all other cells."""
    if len(ratios) < CONTROLS:
        return 0.0
    seen = 1.4826 * statistics.median(abs(ratio.value) for ratio in ratios)
    sampling = statistics.median((ratio.high - ratio.value) / _z() for ratio in ratios)
    return math.sqrt(max(0.0, seen**2 - sampling**2))


def verdict(log_ratio: Estimate) -> str:
    """Of the logarithm of B / A with its interval: SAME, FASTER, SLOWER or UNSURE."""
    value, low, high = log_ratio
    if low > 0 and value > math.log1p(SMALLEST):
        return "SLOWER"
    if high < 0 and value < -math.log1p(SMALLEST):
        return "FASTER"
    seen = math.log1p(RESOLUTION)
    inside = -seen <= low and high <= seen
    if inside or (high - value <= seen and abs(value) <= math.log1p(SMALLEST)):
        return "SAME"
    return "UNSURE"


def blocks(values: Sequence[float], turns: Sequence[int] | None) -> list[Sequence[float]]:
    """The samples turn by turn; in BLOCKS parts of one length where a run was stored without its turns."""
    if not turns or sum(turns) != len(values) or len(turns) < 2:
        count = min(BLOCKS, len(values))
        ends = [len(values) * n // count for n in range(1, count + 1)]
    else:
        ends = [sum(turns[: n + 1]) for n in range(len(turns))]
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _by_key(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    return {tuple(row.get(field) for field in KEY): row for row in rows if row.get("function")}


def _compared(
    a: Measured, b: Measured, row_a: Row, row_b: Row, log_ratio: Estimate | None, drift: float, time: str
) -> Compared:
    times = _time(a, row_a, time), _time(b, row_b, time)
    statuses = row_a.get("status"), row_b.get("status")
    if statuses != ("PASSED", "PASSED"):
        before, after = (_severity(status) for status in statuses)
        changed = "WORSE" if after > before else "BETTER" if after < before else "CHANGED"
        return Compared(row_a, row_b, changed if statuses[0] != statuses[1] else "NOT TIMED", *times)
    if log_ratio is None:
        return Compared(row_a, row_b, "UNSURE" if all(times) else "NOT TIMED", *times)
    half = _z() * drift
    log_ratio = difference(log_ratio, Estimate(0.0, -half, half))
    return Compared(row_a, row_b, verdict(log_ratio), *times, Estimate(*(math.exp(one) for one in log_ratio)))


def _median(run: Measured, row: Row, time: str) -> Estimate | None:
    """Logarithm of the row's median time; None where it has none, or one sample alone."""
    values = _series(run, row, time) if row.get("status") == "PASSED" else []
    if len(values) < 2 or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    return median_of_blocks(blocks(logs, run.samples[row["cell"]].get("turns")))


def _time(run: Measured, row: Row, time: str) -> float | None:
    """The median (ms) of the row's samples, or the row's own where those are missing; None unless it PASSED."""
    if row.get("status") != "PASSED":
        return None
    values = _series(run, row, time)
    stored = row.get(f"{time}_ms") or (row.get("wall_ms") if time == "gpu" else None)
    return statistics.median(values) if values else stored


def _series(run: Measured, row: Row, time: str) -> list[float]:
    """The samples (ms) behind a time of a row, in the order they were taken; none where it has no such time."""
    stored = run.samples.get(row["cell"], {})
    gpu, wall = stored.get("gpu_ms") or [], stored.get("wall_ms") or []
    if time == "total":  # the larger of the two, as in the row
        return gpu if gpu and wall and statistics.median(gpu) >= statistics.median(wall) else wall
    if time == "wall":
        return wall
    parts = stored.get(f"{time}_ms") or []
    if time == "gpu" or (time == "kernel" and not parts and row.get("kernel_ms")):  # a kernel that is the whole region
        return gpu or wall
    return parts


def _severity(status: Any) -> int:
    return 0 if status == "PASSED" else 2 if status in FAILURES else 1


def _z() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
