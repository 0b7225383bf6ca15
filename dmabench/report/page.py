"""One static HTML page of any number of runs: summary, charts, tables, doubts, claims. It needs no network and no
scripts, and stands alone; each chart and table is a file beside it too (report/files.py)."""

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dmabench import __version__
from dmabench.claims.verdicts import VERDICTS, Verdict, load_claims, reported_beside, verdicts
from dmabench.errors import Refusal
from dmabench.report import evals, masks
from dmabench.report.evals import eval_group
from dmabench.report.files import Files
from dmabench.report.masks import mask_group
from dmabench.report.parts import table
from dmabench.report.quality import quality_section
from dmabench.report.reading import Stored, read
from dmabench.report.sections import sections
from dmabench.report.summary import sentences
from dmabench.report.tasks import task_groups
from dmabench.tables.layout import WORDS

Row = dict[str, Any]
TEMPLATES = Path(__file__).with_name("templates")
CLAIM_HEADERS = ("verdict", "claim", "statement", "source", "why", "run", "device", "reproduce")
ENVIRONMENT_HEADERS = ("run", "command", "device", "commit", "status", "started", "driver", "CPU", "python", "versions")


def write_report(paths: Iterable[Path], out: Path, processes: int = 1) -> Path:
    """Writes the page for the run folders `paths` to the file `out` and returns it; its charts and tables go into files
    in a folder beside it.

    Every run has its own section, so nothing is averaged over machines or commits. A run that cannot be read or shown,
    and every damaged line or row, is counted and named on the page. Without a run the page says which command makes
    one. With several `processes` it is made on as many cores. Raises Refusal when `out` cannot be written.
    """
    import jinja2

    stored, problems = read(paths)
    files = Files(out)
    made = sections(stored, files, processes)
    shown = [one for one, of_one in zip(stored, made, strict=True) if not of_one.problem]
    problems += [one.problem for one in made if one.problem]
    files.written = [entry for one in made for entry in one.written]  # in the order of the runs, whoever wrote them
    told_runs = [one.section for one in made]
    claims = load_claims()
    judged = verdicts(claims, [row for one in shown for row in one.rows])
    told = sentences(shown, judged)
    first = quality_section(shown, claims)
    quality = ["dmabench kernels --level layer", "dmabench mqar"]
    first["charts"] = [files.chart("quality", one, one["commands"]) for one in first["charts"]]
    # What nobody has measured yet is most of the list: it stands after the verdicts, folded.
    measured = [one for one in judged if one.verdict != "NO_ROWS"]
    unmeasured = [one for one in judged if one.verdict == "NO_ROWS"]
    if first["table"]:
        first["table"]["links"] = files.table("quality", "headlines", first["table"]["title"], first["table"], quality)
    claims_links = files.table("claims", "claims", "Claims", _claims_table(judged), ["dmabench list claims"])
    environment = _environment(stored)
    environment["links"] = files.table("environment", "environment", "Environment", environment, ["dmabench env"])
    anchors = {section["name"]: f"run-{number}" for number, section in enumerate(told_runs, start=1)}
    loader = jinja2.FileSystemLoader(TEMPLATES)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = template.get_template("report.html.j2").render(
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        runs=told_runs,
        kernels=[section for section in told_runs if "task" not in section],
        tasks=[
            *task_groups([one for one in told_runs if one.get("task") not in (evals.COMMAND, masks.COMMAND)]),
            eval_group(told_runs),
            mask_group(told_runs),
        ],
        problems=problems,
        sentences=told,
        quality=first,
        claims=_by_group(measured),
        unmeasured=_by_group(unmeasured),
        claims_links=claims_links,
        environment=environment,
        anchors=anchors,
        counts=[(name, sum(one.verdict == name for one in judged)) for name in VERDICTS],
        reported=reported_beside(row for one in shown for row in one.rows),
        words=WORDS,
        files=files.close([one.markdown() for one in told]),
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


def _environment(stored: Sequence[Stored]) -> dict[str, Any]:
    """A line for each run: on what it ran, with which versions, at which commit."""
    cells = []
    for one in stored:
        known = one.manifest.get("environment") or {}
        cpu = known.get("cpu") or {}
        drivers = ", ".join(dict.fromkeys(str(gpu.get("driver")) for gpu in known.get("gpus") or []))
        versions = ", ".join(f"{name} {version}" for name, version in (known.get("versions") or {}).items())
        about = [one.name, one.command, one.device, one.commit, _status(one), one.started[:19], drivers]
        about += [f"{cpu.get('model')}, {cpu.get('cores')} cores" if cpu else ""]
        about += [str(known.get("python") or ""), versions]
        cells.append(about)
    return table("Environment", ENVIRONMENT_HEADERS, cells, [""] * len(cells), ENVIRONMENT_HEADERS)


def _status(stored: Stored) -> str:
    status = str(stored.manifest.get("status"))
    return "still being written, or its process was killed" if status == "running" else status


def _claims_table(judged: Sequence[Verdict]) -> dict[str, Any]:
    cells = [
        [
            *(one.verdict, one.claim.id, one.claim.statement, one.claim.source, one.detail),
            *(one.run or "", one.device or "", f"dmabench reproduce {one.claim.id}"),
        ]
        for one in judged
    ]
    return table("Claims", CLAIM_HEADERS, cells, [""] * len(cells), CLAIM_HEADERS)


def _by_group(judged: list[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in judged:
        groups.setdefault(verdict.claim.group, []).append(verdict)
    return groups
