"""The section of each run, with its charts and tables stored as files; on several cores where there are many runs."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from dmabench.report.evals import eval_section, is_eval_run
from dmabench.report.files import Files, stem_of
from dmabench.report.kernel_runs import kernels_section
from dmabench.report.masks import is_mask_run, mask_section
from dmabench.report.parts import about_run
from dmabench.report.reading import Stored
from dmabench.report.tasks import is_task_run, task_section
from dmabench.store.run_folder import read_samples
from dmabench.tables.layout import WORDS

BACKENDS = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
FEWEST = 3
"""Runs of kernels from which another process is worth its start, which costs what two of them cost."""


class Made(NamedTuple):
    """A run as the template shows it; why it could not be shown, if so; and what `Files.written` has of it."""

    section: dict[str, Any]
    problem: str | None
    written: list[dict[str, Any]]


def sections(stored: Sequence[Stored], files: Files, processes: int) -> list[Made]:
    """Of each run, in order.

    Args:
        processes: how many new ones may draw runs of kernels, while this one draws those of tasks, whose modules take
            seconds to import. 1: none.

    Raises:
        Refusal: files cannot be written.
    """
    for one in stored:
        files.folder_of(one.name)  # here, so that no two processes choose the same
    drawn = [one for one in stored if not is_task_run(one.manifest)]
    if processes < 2 or len(drawn) < FEWEST:
        return [section(one, files) for one in stored]
    by_name: dict[str, Made] = {}
    try:
        with ProcessPoolExecutor(min(processes, len(drawn)), _context()) as pool:
            # The largest first, so that none is begun when the others are done.
            largest = sorted(drawn, key=lambda one: -len(one.rows))
            waiting = {one.name: pool.submit(section, one, files) for one in largest}
            by_name = {one.name: section(one, files) for one in stored if one.name not in waiting}
            by_name |= {name: future.result() for name, future in waiting.items()}
    except (BrokenProcessPool, OSError):  # a machine without shared memory, a script that starts itself again
        by_name |= {one.name: section(one, files) for one in stored if one.name not in by_name}
    return [by_name[one.name] for one in stored]


def _context() -> multiprocessing.context.BaseContext:
    """New processes from one that has imported what draws, where the system can: each import takes seconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pandas", "matplotlib.figure", *BACKENDS])
    return context


def section(stored: Stored, files: Files) -> Made:
    """Of one run. Rows that no command writes can break anything, and cost this section alone.

    Raises:
        Refusal: files cannot be written.
    """
    before = len(files.written)
    name, manifest, rows, damaged = stored.name, stored.manifest, stored.rows, len(stored.problems)
    try:
        if is_task_run(manifest):
            made = task_section(name, manifest, rows, damaged)
        elif is_mask_run(manifest):
            made = mask_section(name, manifest, rows, damaged)
        elif is_eval_run(manifest):
            made = eval_section(name, manifest, rows, read_samples(stored.path), damaged)
        else:
            made = kernels_section(name, manifest, rows, damaged)
    except Exception as error:
        why = f"its rows are not what {stored.command or 'a command'} writes ({type(error).__name__}: {error})"
        made = {**about_run(name, manifest, damaged), "summary": [], "charts": [], "no_charts": why}
        return Made(made, f"{name} is not shown: {why}", [])
    commands = [f"dmabench {made['command']}"] if made["command"] else []
    made["charts"] = [files.chart(name, one, commands) for one in made["charts"]]
    for one in made.get("tables", ()):
        one["links"] = files.table(name, stem_of(one["title"]), one["title"], one, commands, made["notes"])
    for key, title in (("table", "Times"), ("losses", "Losses and break-even lengths")):
        if made.get(key):
            cells = {**made[key]._asdict(), "words": WORDS}
            told = [*made[key].notes, *(made["lints"] if key == "table" else ())]
            caption = f"{title}: {made[key].caption}"
            made[f"{key}_links"] = files.table(name, stem_of(title), caption, cells, commands, told)
    return Made(made, None, files.written[before:])
