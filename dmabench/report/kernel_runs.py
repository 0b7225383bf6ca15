"""The sections of a report about kernels: what a run found in sentences, its charts, table, losses and doubts."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from dmabench.charts import costs
from dmabench.charts import kernels as charts
from dmabench.charts.words import ends
from dmabench.report.parts import about_run, chart
from dmabench.store.rows import FAILURES, STATUSES
from dmabench.store.runs import provenance
from dmabench.summaries.lints import lints
from dmabench.summaries.speedups import add_speedups, same_as_baseline, shape_of
from dmabench.tables.break_even import losses
from dmabench.tables.layout import SHARED, backend_id, layout, significant

Row = dict[str, Any]
PASSES = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "forward and backward", "decode": "decoding"}


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


def kernels_section(name: str, manifest: dict[str, Any], rows: list[Row], damaged: int) -> dict[str, Any]:
    """What the template shows of one run: facts, sentences, tables, notes, charts."""
    rows = add_speedups(rows)
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


def _charts(rows: list[Row], about: dict[str, str]) -> list[dict[str, Any]]:
    drawn = []
    # Both charts of one shape stand side by side.
    figures = charts.draw(rows, about)
    panels = list(dict.fromkeys(stem.partition("-")[2] for stem in figures))
    for stem, figure in sorted(figures.items(), key=lambda item: panels.index(item[0].partition("-")[2])):
        title = "; ".join(text.get_text() for text in figure.texts[:2])
        ended = [
            text.get_text().replace("\n", ", ") for text in figure.axes[0].texts if "out of memory" in text.get_text()
        ]
        stops = f" Stopped: {'; '.join(ended)}." if ended else ""
        drawn.append(chart(stem, figure, f"Chart over sequence length: {title}. {ends(figure)}{stops}"))
    for stem, figure in costs.draw(rows, about).items():
        title = "; ".join(text.get_text() for text in figure.texts[:2])
        parts = ", ".join(axes.get_title() for axes in figure.axes)
        names = ", ".join(text.get_text() for legend in figure.legends for text in legend.get_texts())
        drawn.append(chart(stem, figure, f"Chart: {title}. Panels: {parts}. In it: {names}."))
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
