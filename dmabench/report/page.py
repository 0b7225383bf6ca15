"""One static HTML page of any number of runs: tables, doubts, charts, claims. It needs no network and no scripts."""

import os
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dmabench import __version__
from dmabench.charts import kernels as charts
from dmabench.claims.verdicts import VERDICTS, Verdict, load_claims, reported_beside, verdicts
from dmabench.errors import Refusal
from dmabench.report.evals import COMMAND, eval_group, eval_section, is_eval_run
from dmabench.report.masks import is_mask_run, mask_group, mask_section
from dmabench.report.parts import about_run, image
from dmabench.report.tasks import is_task_run, task_groups, task_section
from dmabench.store.rows import FAILURES, STATUSES
from dmabench.store.run_folder import read_samples
from dmabench.store.runs import provenance, read_manifest, read_rows
from dmabench.summaries.lints import lints
from dmabench.summaries.speedups import add_speedups, same_as_baseline, shape_of
from dmabench.tables.break_even import losses
from dmabench.tables.layout import SHARED, WORDS, backend_id, layout, significant

Row = dict[str, Any]
TEMPLATES = Path(__file__).with_name("templates")
PASSES = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "forward and backward", "decode": "decoding"}


def write_report(paths: Iterable[Path], out: Path) -> Path:
    """Writes the page for the run folders `paths` to the file `out` and returns it.

    Every run has its own section, so nothing is averaged over machines or commits. A run that cannot be read, and
    every damaged line, is counted and named on the page. Without a run the page says which command makes one. Raises
    Refusal when `out` cannot be written.
    """
    import jinja2

    sections, rows, problems = _read(paths)
    judged = verdicts(load_claims(), rows)
    # What nobody has measured yet is most of the list: it stands after the verdicts, folded.
    measured = [one for one in judged if one.verdict != "NO_ROWS"]
    unmeasured = [one for one in judged if one.verdict == "NO_ROWS"]
    anchors = {section["name"]: f"run-{number}" for number, section in enumerate(sections, start=1)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        runs=sections,
        kernels=[section for section in sections if "task" not in section],
        tasks=[
            *task_groups([one for one in sections if one.get("task") not in (COMMAND, "mask")]),
            eval_group(sections),
            mask_group(sections),
        ],
        problems=problems,
        claims=_by_group(measured),
        unmeasured=_by_group(unmeasured),
        anchors=anchors,
        counts=[(name, sum(one.verdict == name for one in judged)) for name in VERDICTS],
        reported=reported_beside(rows),
        words=WORDS,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Through a second file: a reader never finds half a page, and a failed write leaves the last one standing.
        beside = out.with_name(out.name + ".new")
        beside.write_text(page, encoding="utf-8")
        os.replace(beside, out)
    except OSError as error:
        raise Refusal(
            f"cannot write the report to {out}: {error.strerror or error}. Name another file with --out FILE."
        ) from error
    return out


def summary(rows: Iterable[Row]) -> list[str]:
    """Sentences that say what the rows of one run found: how many cells passed, and for every pass, shape and window
    the fastest kernel of each attention function at the longest length against the fastest dense backend. What all
    rows share (the table's caption says it) is not repeated in each sentence."""
    rows = add_speedups(rows)
    if not rows:
        return ["Nothing was measured."]
    counts = Counter(str(row.get("status")) for row in rows)
    counted = [f"{counts[status]} {status}" for status in dict.fromkeys([*STATUSES, *counts]) if counts[status]]
    sentences = [f"{len(rows)} cells: {', '.join(counted)}."]
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.get("speedup") is None or row.get("function") == "dense" or row.get("padded_heads"):
            continue
        # Length is the last field of the shape: the longest stands for the others, which are in the table.
        key = (*shape_of(row)[:-1], row.get("function"), row.get("window"), row.get("delta"))
        rank = (row["seqlen"], row["speedup"])
        if key not in best or rank > (best[key]["seqlen"], best[key]["speedup"]):
            best[key] = row
    differing = [field for field in SHARED if len({row[field] for row in rows if row.get(field) is not None}) > 1]
    return sentences + [_sentence(row, differing) for row in best.values()] + _losses(rows)


def _losses(rows: list[Row]) -> list[str]:
    """The longest length flatters a sparse attention, so the cells that lose to dense attention are counted too."""
    timed = [row for row in rows if row.get("speedup") is not None and row.get("function") != "dense"]
    lost = [row for row in timed if row["speedup"] < 1 and not same_as_baseline(row)]
    if not lost:
        return []
    worst = min(lost, key=lambda row: row["speedup"])
    where = f"{PASSES.get(str(worst.get('pass')), str(worst.get('pass')))}, T {worst.get('seqlen')}"
    return [
        f"Slower than the fastest dense backend: {len(lost)} of {len(timed)} timed cells, most of all "
        f"{backend_id(worst)} ({where}: {significant(worst['speedup'])} times as fast)."
    ]


def _sentence(row: Row, differing: list[str]) -> str:
    ratio = row["speedup"]
    if same_as_baseline(row):
        verdict = "is as fast as"
    else:
        verdict = f"is {'slower, ' if ratio < 1 else ''}{significant(ratio)} times as fast as"
    where = [PASSES.get(str(row.get("pass")), str(row.get("pass"))), f"T {row.get('seqlen')}"]
    told = ("window", "delta", "batch", "heads", "kv_heads", "head_dim", "dtype")
    where += [f"{SHARED[field]}{row[field]}" for field in told if field in differing and row.get(field) is not None]
    times = f"{significant(row['total_ms'])} ms against {significant(ratio * row['total_ms'])} ms"
    baseline = f"dense/{row.get('baseline')}, the fastest dense backend"
    place = ", ".join(where)
    return f"{place[0].upper()}{place[1:]}: {backend_id(row)} {verdict} {baseline} ({times})."


def _read(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Row], list[str]]:
    sections: list[dict[str, Any]] = []
    every_row: list[Row] = []
    problems: list[str] = []
    for path in paths:
        try:
            manifest = read_manifest(path)
            rows, damaged = read_rows(path)
        except Refusal as refusal:
            problems.append(f"{path.name} was left out: {refusal}")
            continue
        problems += damaged
        rows = [{**row, "run": row.get("run") or path.name} for row in rows]
        if is_task_run(manifest):
            section = task_section(path.name, manifest, rows, len(damaged))
        elif is_mask_run(manifest):
            section = mask_section(path.name, manifest, rows, len(damaged))
        elif is_eval_run(manifest):
            section = eval_section(path.name, manifest, rows, read_samples(path), len(damaged))
        else:
            rows = add_speedups(rows)
            section = _section(path.name, manifest, rows, len(damaged))
        every_row += rows
        sections.append(section)
    return sections, every_row, problems


def _section(name: str, manifest: dict[str, Any], rows: list[Row], damaged: int) -> dict[str, Any]:
    empty = charts.nothing_to_draw(rows)
    rows = sorted(rows, key=_place)
    # Rows of commands that have no section here would be lines without a backend.
    table = layout(rows) if any(row.get("function") for row in rows) else None
    return {
        **about_run(name, manifest, damaged),
        "summary": summary(rows) if table or not rows else [f"{len(rows)} rows, which this page has no table for."],
        "table": table,
        "lines": _lines(table.rows) if table else [],
        "losses": losses(rows) if table else None,
        "lints": lints(rows, manifest.get("gpu_state")) if table else [],
        "charts": [] if empty else _charts(rows, provenance(manifest)),
        "no_charts": empty,
    }


def _charts(rows: list[Row], about: dict[str, str]) -> list[dict[str, str]]:
    drawn = []
    # Both charts of one shape stand side by side.
    figures = charts.draw(rows, about)
    panels = list(dict.fromkeys(stem.partition("-")[2] for stem in figures))
    for _, figure in sorted(figures.items(), key=lambda item: panels.index(item[0].partition("-")[2])):
        title = "; ".join(text.get_text() for text in figure.texts[:2])
        lines = [text.get_text().replace("\n", ", ") for text in figure.axes[0].texts]
        names = ", ".join(line for line in lines if "/" in line)
        drawn.append(
            {
                "uri": image(figure),
                "alt": f"Chart over sequence length: {title}. Lines: {names}.",
            }
        )
    return drawn


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands in the table of a page: rows are stored as they finish, failures first."""
    order = list(PASSES)
    where = order.index(row["pass"]) if row.get("pass") in order else len(order)
    sizes = [row.get(field) or 0 for field in ("batch", "heads", "kv_heads", "head_dim")]
    words = [str(row.get(field) or "") for field in ("dtype", "delta")]
    return where, *sizes, words[0], row.get("seqlen") or 0, row.get("window") or 0, words[1], backend_id(row)


def _lines(rows: list[Row]) -> list[str]:
    """The CSS classes of the table's lines: a rule above each new shape, colour for a failure, grey for no time."""
    classes = []
    before: Any = None
    for row in rows:
        status = row.get("status")
        kind = "" if status == "PASSED" else "bad" if status in FAILURES else "none"
        classes.append(f"{'first ' if before not in (None, shape_of(row)) else ''}{kind}".strip())
        before = shape_of(row)
    return classes


def _by_group(judged: list[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in judged:
        groups.setdefault(verdict.claim.group, []).append(verdict)
    return groups
