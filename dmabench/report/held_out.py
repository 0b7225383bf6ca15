"""Held-out loss over attentions: of each its mean over seeds, and how far it is from dense attention's."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from dmabench.claims.rules_language import loss_lead
from dmabench.claims.trained_models import Model, Row, Setting, settings_of, shared_seeds
from dmabench.statistics.intervals import Estimate, t_interval
from dmabench.summaries.controls import CONTROL
from dmabench.summaries.task_layout import Sheet, place
from dmabench.tasks.task import Task

NOTE = (
    "held-out loss: nats a token of the test text, lower is better; minus MHA: from MHA with the same settings and "
    "seeds; interval: 95%, over the documents of the text for one seed, over seeds for several; ~ it holds 0: not "
    "separated"
)


class HeldOut(NamedTuple):
    """A table, and what its reader must know."""

    sheet: Sheet
    notes: list[str]


def held_out(task: Task, rows: Sequence[Row]) -> HeldOut | None:
    """A line for each setting and attention, with learning rates as validation chose them; None where no row has a
    loss. Attentions that failed are not in it: the table of the run says so.

    Args:
        rows: of one run of a task that stores test_loss.
    """
    scored = [row for row in rows if row.get("status") == "PASSED" and row.get("test_loss") is not None]
    found: list[Setting] = []
    for kind in dict.fromkeys(row["attention"] for row in scored):
        found += settings_of(task, scored, {}, kind, () if kind == CONTROL else (CONTROL,))
    if not found:
        return None
    found.sort(key=lambda setting: place(task, setting.first))
    columns: dict[str, Callable[[Setting], str]] = {
        "": lambda setting: setting.where,
        "attention": lambda setting: setting.model.name,
        "held-out loss": lambda setting: _mean(_values(setting.model, "test_loss")),
        "over seeds": lambda setting: _spread(_values(setting.model, "test_loss")),
        "minus MHA": lambda setting: f"{apart.value:+.4f}" if (apart := _difference(setting)) else "",
        "interval": lambda setting: _interval(_difference(setting)),
        "validation loss": lambda setting: _mean(_values(setting.model, "validation_loss")),
        "seeds": lambda setting: str(len(setting.model.seeds)),
    }
    # A column that says nothing of any line is left out.
    filled = {header: [cell(setting) for setting in found] for header, cell in columns.items()}
    filled = {header: cells for header, cells in filled.items() if any(cells)}
    lines = [list(line) for line in zip(*filled.values(), strict=True)]
    sheet = Sheet("Held-out loss", list(filled), lines, [""] * len(lines))
    return HeldOut(sheet, [NOTE] if "minus MHA" in filled else [])


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" if values else ""


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""


def _interval(apart: Estimate | None) -> str:
    if apart is None or not math.isfinite(apart.low):
        return ""
    return f"{apart.low:+.4f} to {apart.high:+.4f}" + " ~" * (apart.low <= 0 <= apart.high)


def _values(model: Model, field: str) -> list[float]:
    """One for each seed that has it."""
    return [rows[0][field] for rows in model.seeds.values() if rows[0].get(field) is not None]


def _difference(setting: Setting) -> Estimate | None:
    """Loss minus that of dense attention, over the seeds of both; its limits are infinite where rows say nothing about
    the spread."""
    model, dense = setting.model, next(iter(setting.others.get(CONTROL, [])), None)
    within = [loss_lead({0.0: (dense, model)}, seed) for seed in shared_seeds(model, dense)] if dense else []
    if len(within) < 2:
        return within[0] if within else None
    return t_interval([one.value for one in within])
