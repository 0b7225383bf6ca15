"""Charts of trained models: which of them a task gets, and writing them into a run's folder.

Figures are made without pyplot, so importing this or drawing changes no global state and needs no display.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.charts.kernels import save
from dmabench.charts.style import STYLE
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.runs import provenance
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def draw_run(path: Path, task: Task | None = None) -> list[Path]:
    """Draws a run's charts into its folder, as PNG and SVG, and returns the files written; none, with a log line why,
    where no row has an accuracy.

    Args:
        task: of the run; default: the one that its rows name.

    Raises:
        Refusal: the folder is no run.
        ValueError: no such task is installed.
    """
    rows, _ = read_rows(path)
    reason = nothing_to_draw(rows)
    if reason:
        logging.getLogger(__name__).info("no charts for %s: %s", path.name, reason)
        return []
    if task is None:
        from dmabench.tasks import registry

        task = registry.get(next(row["task"] for row in rows if row.get("task")))
    written = []
    for stem, figure in draw(task, rows, provenance(read_manifest(path))).items():
        written += save(figure, path / f"{stem}.png")
    return written


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """{file name stem: figure} of one run's rows; `about` (runs.provenance) goes into the footers."""
    import matplotlib

    from dmabench.charts import learning

    with matplotlib.rc_context(STYLE):
        return _of_task(task, rows, about) | learning.draw(task, rows, about)


def _of_task(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """The figures that fit what the rows tell."""
    from dmabench.charts import ablation, language, needle, patterns, recall, scaling

    if any(row.get("test_len") is not None for row in rows):
        return needle.draw(task, rows, about)
    if any(row.get("pattern") is not None for row in rows):
        return patterns.draw(task, rows, about)
    if any(row.get("variant") is not None for row in rows):
        return ablation.draw(task, rows, about)
    if any(row.get("train_flops") is not None for row in rows):
        return scaling.draw(task, rows, about)
    if any(row.get("bits_per_byte") is not None for row in rows):
        return language.draw(task, rows, about)
    return recall.draw(task, rows, about)


def nothing_to_draw(rows: Sequence[Row]) -> str | None:
    """Why these rows give no chart, or None when they do."""
    if not rows:
        return "it has no rows"
    if not any(row.get("task") and row.get("status") == "PASSED" and row.get("accuracy") is not None for row in rows):
        return "no row passed, so there is no accuracy"
    return None
