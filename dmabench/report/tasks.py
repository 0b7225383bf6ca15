"""The sections of a report about trained models: a group for each task, in it a section for each run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmabench.charts import tasks as task_charts
from dmabench.charts.style import STYLE
from dmabench.charts.words import ends
from dmabench.report.held_out import TASKS, figures, held_out
from dmabench.report.parts import about_run, chart, table
from dmabench.store.runs import provenance
from dmabench.summaries.task_layout import LEFT, sheets
from dmabench.tables.tasks import notes
from dmabench.tasks import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
ALWAYS = {
    "mqar": "Recall",
    "patterns": "Sparse patterns",
    "needle": "Needles in haystacks",
    "train": "Language models",
    "scaling": "Language models over size",
    "ablate": "DMA with one part changed",
}
"""Tasks that have a group even before any run, with its heading."""
NEEDS = "The small default of this machine, and one for a GPU"


def is_task_run(manifest: dict[str, Any]) -> bool:
    """Was the run made by the command of a task?"""
    return manifest.get("command") in registry.names() or manifest.get("command") in ALWAYS


def task_section(
    name: str, manifest: dict[str, Any], rows: list[Row], damaged: int, charts: bool = True
) -> dict[str, Any]:
    """What the template shows of one run: facts, tables, notes, charts (if asked for). A task that cannot be loaded any
    more is said in place of its tables."""
    section = {
        "task": manifest["command"],
        **about_run(name, manifest, damaged),
        "tables": [],
        "notes": [],
        "charts": [],
        "no_charts": task_charts.nothing_to_draw(rows),
    }
    try:
        task = registry.get(manifest["command"])
    except Exception as error:  # whatever importing another package's task may raise
        return section | {"no_charts": f"the task cannot be loaded ({type(error).__name__}: {error})"}
    told = [table(*sheet, LEFT) for sheet in sheets(task, rows)]
    found = notes(task, rows)
    if task.name in TASKS and (compared := held_out(task, rows)):
        told.append(table(*compared.sheet, LEFT))
        found += compared.notes
    section |= {"notes": found, "tables": told}
    return section if section["no_charts"] or not charts else section | {"charts": _charts(manifest, rows)}


def task_groups(sections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every task with its runs: our own always, with the commands that make a run where there is none."""
    names = dict.fromkeys([*ALWAYS, *(section["task"] for section in sections if "task" in section)])
    found = []
    for name in names:
        mine = [section for section in sections if section.get("task") == name]
        about = registry.names().get(name, "")
        group = {"name": name, "title": ALWAYS.get(name, name), "about": about, "runs": mine}
        found.append(group | {"commands": [f"dmabench {name}", f"dmabench {name} --preset h100"], "needs": NEEDS})
    return found


def figures_of(manifest: dict[str, Any], rows: list[Row]) -> "dict[str, Figure]":
    """Every chart of a run, by the stem of its file."""
    task, about = registry.get(manifest["command"]), provenance(manifest)
    return {} if task_charts.nothing_to_draw(rows) else figures(task, rows, about) | task_charts.draw(task, rows, about)


def _charts(manifest: dict[str, Any], rows: list[Row]) -> list[dict[str, Any]]:
    import matplotlib

    drawn = []
    with matplotlib.rc_context(STYLE):
        for stem, figure in figures_of(manifest, rows).items():
            words = "; ".join(text.get_text() for text in figure.texts[:2])
            texts = [text for axes in figure.axes for text in (axes.title, *axes.texts)]
            texts += [text for axes in figure.axes if (legend := axes.get_legend()) for text in legend.get_texts()]
            names = dict.fromkeys(text.get_text() for text in texts)
            told = ", ".join(name for name in names if name[:3].isalpha())
            drawn.append(chart(stem, figure, f"Chart: {words}. In it: {told}. {ends(figure)}".strip()))
    return drawn
