"""The summary and the tables of stored runs, with the sentences that belong under them, in Markdown."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmabench.store.environment import device_name
from dmabench.store.run_folder import read_manifest, read_rows, read_samples
from dmabench.store.runs import provenance
from dmabench.summaries.lints import lints
from dmabench.summaries.speedups import add_speedups
from dmabench.tables.kernels import markdown_lines, markdown_table
from dmabench.tables.layout import WORDS
from dmabench.tables.masks import layout

Row = dict[str, Any]


def markdown(paths: Sequence[Path]) -> str:
    """The summary in five sentences, then a heading, the tables and the notes of each run.

    Raises:
        Refusal: a run cannot be read.
    """
    from dmabench.claims.verdicts import load_claims, verdicts
    from dmabench.report.reading import read
    from dmabench.report.summary import sentences

    runs = [_run(path) for path in paths]
    stored, _ = read(paths)
    told = sentences(stored, verdicts(load_claims(), [row for one in stored for row in one.rows]))
    return "\n".join(["## Summary\n", *(one.markdown() for one in told), "", *runs])


def _run(path: Path) -> str:
    from dmabench.report.evals import is_eval_run
    from dmabench.report.tasks import is_task_run

    manifest = read_manifest(path)
    rows, problems = read_rows(path)
    about = provenance(manifest)
    words = [f"`dmabench {' '.join(map(str, manifest.get('argv') or []))}`", device_name(manifest["environment"])]
    words += [about["versions"], about["commit"], str(manifest.get("status"))]
    parts: Iterator[str]
    notes: list[str]
    if not rows:
        parts, notes = iter(["No rows."]), []
    elif is_eval_run(manifest):
        parts, notes = _eval(rows, read_samples(path))
    elif is_task_run(manifest):
        parts, notes = _task(str(manifest["command"]), rows)
    elif any(row.get("function") for row in rows):
        rows = add_speedups(rows)
        parts, notes = iter([markdown_table(rows)]), lints(rows, manifest.get("gpu_state"))
    elif manifest.get("command") == "mask":
        shown = layout(rows)
        parts, notes = iter([f"{shown.caption}\n\n{markdown_lines(shown.headers, shown.cells, WORDS)}"]), shown.notes
    else:
        parts, notes = iter([_every_field(rows)]), []
    told = "\n".join(f"- {note}" for note in [*notes, *problems])
    return (
        "\n\n".join([f"## {path.name}", " · ".join(filter(None, words)), *map(str.strip, parts), told]).strip() + "\n"
    )


def _task(name: str, rows: list[Row]) -> tuple[Iterator[str], list[str]]:
    from dmabench.summaries.task_layout import LEFT, sheets
    from dmabench.tables.tasks import notes
    from dmabench.trials.loading import load

    task = load(name)
    tables = (f"{one.title}\n\n{markdown_lines(one.headers, one.cells, LEFT)}" for one in sheets(task, rows))
    return tables, notes(task, rows)


def _eval(rows: list[Row], samples: list[Row]) -> tuple[Iterator[str], list[str]]:
    from dmabench.evals.significance import compare
    from dmabench.evals.tables import notes
    from dmabench.report.evals import tables

    p_values = compare(rows, samples)
    found = tables(rows, p_values)
    shown = (f"{one['title']}\n\n{markdown_lines(one['headers'], one['cells'], one['words'])}" for one in found)
    return shown, notes(rows, p_values)


def _every_field(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row if row[name] is not None))
    cells = [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]
    words = [name for name in names if any(isinstance(row.get(name), str) for row in rows)]
    return markdown_lines(names, cells, words)
