"""Held-out loss over attentions: of each its mean over seeds, and how far it is from dense attention's; as a frame, as
a table and as a chart."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from dmabench.charts import held_out as chart
from dmabench.charts.kernels import save
from dmabench.claims.trained_models import Row, Setting, settings_of, shared_seeds
from dmabench.statistics.intervals import Estimate, t_interval
from dmabench.statistics.scaling_fit import over_documents
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.runs import provenance
from dmabench.summaries.controls import CONTROL
from dmabench.summaries.task_layout import Sheet, place, words_with_size
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

TASKS = ("train", "scaling")
"""Tasks whose runs get the table and the chart."""
SEEDS = 3
"""That an interval over seeds needs: of two, Student's is 13 standard errors wide."""
NOTE = (
    "held-out loss: nats a token of the test text, lower is better; minus MHA: from MHA with the same settings and "
    f"seeds; interval: 95%, over seeds where there are {SEEDS} or more, else over the documents of the text; ~ it "
    "holds 0: not separated"
)


class HeldOut(NamedTuple):
    """A table, and what its reader must know."""

    sheet: Sheet
    notes: list[str]


def frame_of(task: Task, rows: Sequence[Row]) -> "pandas.DataFrame":
    """A line for each setting and attention, with learning rates as validation chose them: where, name, attention,
    window, seeds, losses (of each seed), validation, and for `loss` and `apart` (from MHA) value, _low, _high and what
    the interval is _over. Attentions that failed are not in it: the table of the run says so.

    Args:
        rows: of one run of a task that stores test_loss.
    """
    import pandas

    scored = [row for row in rows if row.get("status") == "PASSED" and row.get("test_loss") is not None]
    found: list[Setting] = []
    for kind in dict.fromkeys(row["attention"] for row in scored):
        found += settings_of(task, scored, {}, kind, () if kind == CONTROL else (CONTROL,))
    found.sort(key=lambda setting: place(task, setting.first))
    return pandas.DataFrame([_line(setting) for setting in found])


def held_out(task: Task, rows: Sequence[Row]) -> HeldOut | None:
    """The frame as a table; None where no row has a loss."""
    found = frame_of(task, rows).to_dict("records")
    if not found:
        return None
    columns: dict[str, Callable[[dict[Any, Any]], str]] = {
        "": lambda line: line["where"],
        "attention": lambda line: line["name"],
        "held-out loss": lambda line: _mean(line["losses"]),
        "over seeds": lambda line: _spread(line["losses"]),
        "minus MHA": lambda line: f"{line['apart']:+.4f}" if math.isfinite(line["apart"]) else "",
        "interval": lambda line: _interval(line["apart_low"], line["apart_high"]),
        "validation loss": lambda line: _mean(line["validation"]),
        "seeds": lambda line: str(line["seeds"]),
    }
    # A column that says nothing of any line is left out.
    filled = {header: [cell(line) for line in found] for header, cell in columns.items()}
    filled = {header: cells for header, cells in filled.items() if any(cells)}
    lines = [list(line) for line in zip(*filled.values(), strict=True)]
    sheet = Sheet("Held-out loss", list(filled), lines, [""] * len(lines))
    return HeldOut(sheet, [NOTE] if "minus MHA" in filled else [])


def figures(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """{file name stem: the frame as a chart}; none where there is nothing to compare.

    Args:
        about: runs.provenance, for the footer.
    """
    frame = frame_of(task, rows) if task.name in TASKS else ()
    if len(frame) < 2:
        return {}
    passed = [row for row in rows if row.get("status") == "PASSED"]
    return {f"{task.name}-held-out": chart.draw(frame, words_with_size(task, passed), about)}


def draw_run(path: Path, task: Task) -> list[Path]:
    """Draws the chart into a run's folder, as PNG and SVG, and returns the files written. Raises Refusal when the
    folder is no run."""
    rows, _ = read_rows(path)
    written = []
    for stem, figure in figures(task, rows, provenance(read_manifest(path))).items():
        written += save(figure, path / f"{stem}.png")
    return written


def _line(setting: Setting) -> Row:
    model, dense = setting.model, next(iter(setting.others.get(CONTROL, [])), None)
    rows = [of_seed[0] for of_seed in model.seeds.values()]
    losses = [row["test_loss"] for row in rows]
    line = {
        "where": setting.where,
        "name": model.name,
        **{name: setting.first.get(name) for name in ("attention", "window", "device", "status")},
        "seeds": len(model.seeds),
        "losses": losses,
        "validation": [row["validation_loss"] for row in rows if row.get("validation_loss") is not None],
        **_columns("loss", *_estimate(losses, [[row] for row in rows])),
    }
    shared = shared_seeds(model, dense) if dense else []
    if dense is None or not shared:
        return {**line, **_columns("apart", None, None)}
    pairs = [[model.seeds[seed][0], dense.seeds[seed][0]] for seed in shared]
    differences = [own["test_loss"] - other["test_loss"] for own, other in pairs]
    return {**line, **_columns("apart", *_estimate(differences, pairs))}


def _columns(name: str, estimate: Estimate | None, over: str | None) -> Row:
    value, low, high = estimate or (math.nan,) * 3
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_over": over}


def _estimate(values: Sequence[float], rows: Sequence[Sequence[Row]]) -> tuple[Estimate, str | None]:
    """Mean of values, one a seed, with its interval and what that is over; limits are NaN where rows say nothing about
    the spread.

    Args:
        rows: of each seed the row that its value is the loss of, or the two that it is the difference of.
    """
    if len(values) >= SEEDS:
        return t_interval(values), "seeds"
    if (drawn := _over_documents(rows)) is not None:
        return drawn, "documents"
    return Estimate(fmean(values), math.nan, math.nan), None


def _over_documents(rows: Sequence[Sequence[Row]]) -> Estimate | None:
    """Mean over seeds, drawing documents of the text alike for all models; None where they read other documents."""
    import numpy as np

    from dmabench.tasks.document_losses import unpack

    every = [row for of_seed in rows for row in of_seed]
    if len({row.get("text_key") for row in every}) > 1 or not all(row.get("document_losses") for row in every):
        return None
    losses = [[unpack(row["document_losses"]) for row in of_seed] for of_seed in rows]
    tokens = losses[0][0][1]
    if len(tokens) < 2 or any(list(found) != list(tokens) for of_seed in losses for _, found in of_seed):
        return None
    own = [of_seed[0][0] - of_seed[1][0] if len(of_seed) > 1 else of_seed[0][0] for of_seed in losses]
    return over_documents({0.0: np.mean(own, axis=0)}, tokens.astype(float))


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" if values else ""


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""


def _interval(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}" + " ~" * (low <= 0 <= high) if math.isfinite(low) else ""
