"""The sections of a report about trained models: a group for each task, in it a section for each run."""

from collections.abc import Sequence
from typing import Any

from dmabench import task_charts
from dmabench.chart_style import STYLE
from dmabench.environment import device_name
from dmabench.report_parts import facts, image
from dmabench.rows import FAILURES
from dmabench.runs import provenance
from dmabench.task_layout import LEFT, Sheet, sheets
from dmabench.task_tables import notes
from dmabench.tasks import registry
from dmabench.tasks.task import Task

Row = dict[str, Any]
ALWAYS = {"mqar": "Recall", "patterns": "Sparse patterns", "needle": "Needles in haystacks"}
"""Tasks that have a group even before any run, with its heading."""


def is_task_run(manifest: dict[str, Any]) -> bool:
    """Was the run made by the command of a task?"""
    return manifest.get("command") in registry.names() or manifest.get("command") in ALWAYS


def task_section(name: str, manifest: dict[str, Any], rows: list[Row], damaged: int) -> dict[str, Any]:
    """What the template shows of one run: facts, tables, notes, charts. A task that cannot be loaded any more is said
    in place of its tables."""
    about = provenance(manifest)
    environment = manifest.get("environment") or {}
    section = {
        "task": manifest["command"],
        "name": name,
        "status": manifest.get("status"),
        "command": " ".join(str(word) for word in manifest.get("argv") or []),
        "device": device_name(environment),
        "facts": facts(manifest, environment, about),
        "damaged": damaged,
        "tables": [],
        "notes": [],
        "charts": [],
        "no_charts": task_charts.nothing_to_draw(rows),
    }
    try:
        task = registry.get(manifest["command"])
    except Exception as error:  # whatever importing another package's task may raise
        return section | {"no_charts": f"the task cannot be loaded ({type(error).__name__}: {error})"}
    section |= {"notes": notes(task, rows), "tables": [_table(sheet) for sheet in sheets(task, rows)]}
    return section if section["no_charts"] else section | {"charts": _charts(task, rows, about)}


def task_groups(sections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every task with its runs: our own always, with the commands that make a run where there is none."""
    names = dict.fromkeys([*ALWAYS, *(section["task"] for section in sections if "task" in section)])
    found = []
    for name in names:
        mine = [section for section in sections if section.get("task") == name]
        about = registry.names().get(name, "")
        commands = [f"dmabench {name}", f"dmabench {name} --preset h100"]
        found.append(
            {"name": name, "title": ALWAYS.get(name, name), "about": about, "runs": mine, "commands": commands}
        )
    return found


def _table(sheet: Sheet) -> dict[str, Any]:
    kinds = ["bad" if state in FAILURES else "none" if state else "" for state in sheet.states]
    return {"title": sheet.title, "headers": sheet.headers, "cells": sheet.cells, "lines": kinds, "words": LEFT}


def _charts(task: Task, rows: list[Row], about: dict[str, str]) -> list[dict[str, str]]:
    import matplotlib

    drawn = []
    with matplotlib.rc_context(STYLE):
        for figure in task_charts.draw(task, rows, about).values():
            words = "; ".join(text.get_text() for text in figure.texts[:2])
            names = dict.fromkeys(text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts))
            told = ", ".join(name for name in names if name[:3].isalpha())
            drawn.append({"uri": image(figure), "alt": f"Chart: {words}. In it: {told}."})
    return drawn
