"""One static HTML page of any number of runs: tables, doubts, charts, claims. It needs no network and no scripts."""

import base64
import io
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dmabench import __version__, charts
from dmabench.claims import VERDICTS, Verdict, load_claims, reported_beside, verdicts
from dmabench.environment import device_name
from dmabench.errors import Refusal
from dmabench.lints import lints
from dmabench.runs import provenance, read_manifest, read_rows
from dmabench.speedups import add_speedups, same_as_baseline, shape_of
from dmabench.table_layout import WORDS, backend_id, layout

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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        runs=sections,
        problems=problems,
        claims=_by_group(judged),
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
    the fastest kernel of each attention function at the longest length against the fastest dense backend."""
    rows = add_speedups(rows)
    if not rows:
        return ["Nothing was measured."]
    statuses = list(dict.fromkeys(str(row.get("status")) for row in rows))
    counted = [f"{sum(str(row.get('status')) == status for row in rows)} {status}" for status in statuses]
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
    return sentences + [_sentence(row) for row in best.values()]


def _sentence(row: Row) -> str:
    ratio = row["speedup"]
    if same_as_baseline(row):
        verdict = "is as fast as"
    else:
        verdict = f"is {ratio:.2f} times as fast as" if ratio >= 1 else f"is slower, {ratio:.2f} times as fast as"
    where = [PASSES.get(str(row.get("pass")), str(row.get("pass"))), f"T {row.get('seqlen')}"]
    where += [f"w {row['window']}"] if row.get("window") else []
    where += [f"delta {row['delta']}"] if row.get("delta") else []
    sizes = ("B", "batch"), ("H", "heads"), ("G", "kv_heads"), ("D", "head_dim")
    shape = ", ".join([f"{letter} {row.get(field)}" for letter, field in sizes] + [str(row.get("dtype"))])
    return (
        f"{backend_id(row)} {verdict} dense/{row.get('baseline')}, the fastest dense backend, in {', '.join(where)} "
        f"({shape}): {row['total_ms']:.3g} ms against {ratio * row['total_ms']:.3g} ms."
    )


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
        rows = add_speedups({**row, "run": row.get("run") or path.name} for row in rows)
        every_row += rows
        sections.append(_section(path.name, manifest, rows, len(damaged)))
    return sections, every_row, problems


def _section(name: str, manifest: dict[str, Any], rows: list[Row], damaged: int) -> dict[str, Any]:
    about = provenance(manifest)
    environment = manifest.get("environment") or {}
    empty = charts.nothing_to_draw(rows)
    return {
        "name": name,
        "status": manifest.get("status"),
        "command": " ".join(str(word) for word in manifest.get("argv") or []),
        "device": device_name(environment),
        "facts": _facts(manifest, environment, about),
        "summary": summary(rows),
        "damaged": damaged,
        "table": layout(rows) if rows else None,
        "lints": lints(rows, manifest.get("gpu_state")),
        "charts": [] if empty else _charts(rows, about),
        "no_charts": empty,
    }


def _facts(manifest: dict[str, Any], environment: dict[str, Any], about: dict[str, str]) -> list[tuple[str, str]]:
    cpu = environment.get("cpu") or {}
    facts = [
        ("started", manifest.get("started")),
        ("finished", manifest.get("finished") or f"not finished (status {manifest.get('status')})"),
        ("commit", about["commit"]),
        ("python", environment.get("python")),
        ("platform", environment.get("platform")),
        ("CPU", f"{cpu.get('model')}, {cpu.get('cores')} cores"),
        ("seeds", ", ".join(str(seed) for seed in manifest.get("seeds") or []) or None),
    ]
    facts += [(name, version) for name, version in (environment.get("versions") or {}).items()]
    for gpu in environment.get("gpus") or []:
        facts.append(
            ("GPU", f"{gpu.get('name')}, {gpu.get('memory_mib')} MiB, driver {gpu.get('driver')}, {gpu.get('uuid')}")
        )
    for when in ("before", "after"):
        for state in (manifest.get("gpu_state") or {}).get(when) or []:
            reasons = ", ".join(state.get("reasons") or []) or "none"
            facts.append(
                (
                    f"GPU {when}",
                    f"{state.get('sm_mhz')} MHz, memory {state.get('memory_mhz')} MHz, {state.get('temperature_c')} C, "
                    f"{state.get('power_w')} W, clock reasons: {reasons}",
                )
            )
    return [(name, str(value)) for name, value in facts if value is not None]


def _charts(rows: list[Row], about: dict[str, str]) -> list[dict[str, str]]:
    import matplotlib

    drawn = []
    for stem, figure in charts.draw(rows, about).items():
        buffer = io.BytesIO()
        with matplotlib.rc_context(charts.STYLE):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        kind = "Total time per call" if stem.startswith("latency") else "Speed-up over the fastest dense backend"
        title = "; ".join(text.get_text() for text in figure.texts[:2])
        lines = [text.get_text().replace("\n", ", ") for text in figure.axes[0].texts]
        names = ", ".join(line for line in lines if "/" in line)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        drawn.append(
            {
                "uri": f"data:image/svg+xml;base64,{encoded}",
                "alt": f"{kind} over sequence length. {title}. Lines: {names}.",
            }
        )
    return drawn


def _by_group(judged: list[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in judged:
        groups.setdefault(verdict.claim.group, []).append(verdict)
    return groups
