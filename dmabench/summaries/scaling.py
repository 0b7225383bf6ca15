"""What rows of several sizes say: exponents of loss over size and computation, and how each lead over DMA's rivals
goes with size."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from dmabench.statistics.intervals import Estimate
from dmabench.statistics.scaling_fit import Fit, Point, line_through, power_law
from dmabench.summaries.controls import judged
from dmabench.summaries.task_layout import name_of, place
from dmabench.tasks.task import Task

Row = dict[str, Any]
MEASURES = {"parameters": "parameters", "train_flops": "training FLOPs"}
"""Fields that loss is fitted over, in words."""
SUBJECT = "dma"


class Lead(NamedTuple):
    """Loss of a rival minus DMA's, over the logarithm of DMA's parameters."""

    points: list[Point]
    slope: Estimate | None
    """Nats a token for each factor e of parameters; None with too few sizes."""
    intercept: float
    over: str


def lines_of(task: Task, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Attention -> its rows, with learning rates as validation chose them; those that failed are left out."""
    found: dict[str, list[Row]] = {}
    for row in sorted(judged(task, rows), key=lambda row: place(task, row)):
        if row["chosen"] and row.get("status") == "PASSED" and row.get("test_loss"):
            found.setdefault(name_of(row), []).append(row)
    return found


def points_of(rows: Sequence[Row], measure: str) -> list[Point]:
    """Size, loss and seed of each row."""
    return [(row[measure], row["test_loss"], row.get("seed")) for row in rows if row.get(measure)]


def fits_of(task: Task, rows: Sequence[Row], measure: str) -> dict[str, Fit]:
    """Attention -> its power law, where it has sizes enough."""
    found = {name: power_law(points_of(mine, measure)) for name, mine in lines_of(task, rows).items()}
    return {name: fit for name, fit in found.items() if fit}


def leads_of(task: Task, rows: Sequence[Row]) -> dict[str, Lead]:
    """Rival -> how far DMA is ahead of it at each size and seed that both have."""
    lines = lines_of(task, rows)
    mine = {(row.get("size"), row.get("seed")): row for row in lines.get(SUBJECT, [])}
    found = {}
    for name, theirs in lines.items():
        if name == SUBJECT:
            continue
        points = []
        for row in theirs:
            own = mine.get((row.get("size"), row.get("seed")))
            if own and own.get("parameters"):
                points.append((math.log(own["parameters"]), row["test_loss"] - own["test_loss"], row.get("seed")))
        if points:
            line = line_through(points)
            found[name] = Lead(points, *(line or (None, fmean(y for _, y, _ in points), "")))
    return found


def told(estimate: Estimate, digits: int = 3) -> str:
    """A number and its interval."""
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def scaling_notes(task: Task, rows: Sequence[Row]) -> list[str]:
    """Sentences under a table: the fits, and the slope of each lead."""
    if not any(row.get("train_flops") for row in rows):
        return []
    found = []
    for measure, words in MEASURES.items():
        fits = fits_of(task, rows, measure)
        if fits:
            each = "; ".join(f"{name} {told(fit.exponent)}" for name, fit in fits.items())
            over = ", ".join(dict.fromkeys(fit.over for fit in fits.values()))
            found.append(f"loss falls as {words} to the power of minus: {each} (95% intervals over {over})")
    for name, lead in leads_of(task, rows).items():
        if lead.slope:
            found.append(
                f"lead of {SUBJECT} over {name} (nats a token) grows by {told(lead.slope, 4)} for each factor e of "
                f"parameters (95% interval over {lead.over})"
            )
    return found or ["a fit needs three sizes (--size)"]
