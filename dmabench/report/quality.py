"""The first chart of a report: layer time against quality, and the speed-up at the smallest window that costs none."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from dmabench.charts import quality as charts
from dmabench.charts.data import rows_behind
from dmabench.charts.words import ends
from dmabench.claims.verdicts import Claim
from dmabench.report.kernel_runs import PASSES
from dmabench.report.parts import chart, table
from dmabench.report.reading import Stored
from dmabench.report.tasks import is_task_run
from dmabench.store.runs import provenance
from dmabench.summaries.quality import headline, layer_times, panels_of, points, qualities, unmatched
from dmabench.summaries.task_layout import length
from dmabench.tasks import registry

HEADERS = ("headline", "task", "pass", "T", "setting", "layer", "device", "time", "quality")
NOTHING = "No window is both timed in a layer and scored at the same length on the same device yet"
COMMANDS = (
    "dmabench mqar --pairs 64 --seqlen 1k --window 64,128,256",
    "dmabench kernels --level layer --seqlen 1k --window 64,128,256",
)


def quality_section(stored: Sequence[Stored], claims: Iterable[Claim]) -> dict[str, Any]:
    """What the template shows: charts (with the commands of their two runs), a table of headlines, and, where qualities
    lack a time, how to measure it. A time and a quality meet at the same device, length and window; runs stay apart."""
    times = [row for one in stored for row in layer_times(one.rows)]
    scored = []
    for one in stored:
        if is_task_run(one.manifest) and one.rows:
            try:
                scored += qualities(registry.get(one.command), one.rows)
            except Exception:  # a task of another package that is gone: its own section says so
                continue
    frame = points(times, scored, _margins(claims))
    about = {one.name: provenance(one.manifest) for one in stored}
    argv = {one.name: [str(word) for word in one.manifest.get("argv") or []] for one in stored}
    drawn = []
    for stem, figure in charts.draw(frame, about).items():
        behind = rows_behind(figure)
        runs = dict.fromkeys([*behind["time_run"], *behind["quality_run"]]) if behind is not None else {}
        words = "; ".join(text.get_text() for text in figure.texts[:2])
        names = ", ".join(dict.fromkeys(behind["name"])) if behind is not None else ""
        made = chart(stem, figure, f"Chart: {words}. Points: {names}. {ends(figure)}".strip())
        drawn.append(made | {"commands": [f"dmabench {shlex.join(argv[run])}" for run in runs if argv.get(run)]})
    missing, commands = unmatched(times, scored)
    return {
        "charts": drawn,
        "headline": _headline(frame),
        "table": _headlines(frame, {one.name: one.commit for one in stored}),
        "missing": missing,
        "commands": commands if missing else [] if drawn else list(COMMANDS),
        "nothing": None if drawn else NOTHING,
    }


def _headline(frame: Any) -> str | None:
    """Of the first chart its longest panel, where dense attention costs most, of those whose MHA has learned."""
    panels = panels_of(frame)
    if not panels:
        return None
    first = panels[0].iloc[0]
    alike = [
        one for one in panels if all(one[name].iloc[0] == first[name] for name in ("time_run", "quality_run", "pass"))
    ]
    panel = max(alike, key=lambda one: (one["bound"].notna().any(), one["seqlen"].iloc[0]))
    row = panel.iloc[0]
    where = [PASSES[row["pass"]], row["task"], f"T {length(int(row['seqlen']))}", row["setting"], row["device"]]
    return f"{', '.join(filter(None, where))}: {headline(panel).text}"


def _headlines(frame: Any, commits: dict[str, str]) -> dict[str, Any] | None:
    """A line for each panel."""
    cells, states = [], []
    for panel in panels_of(frame):
        found, first = headline(panel), panel.iloc[0]
        layer = f"B {first['batch']:g}, H {first['heads']:g}, G {first['kv_heads']:g}, D {first['head_dim']:g}"
        where = [first["task"], PASSES[first["pass"]], length(int(first["seqlen"])), first["setting"]]
        where += [f"{layer}, {first['dtype']}", first["device"]]
        cells.append([found.text, *map(str, where), commits[first["time_run"]], commits[first["quality_run"]]])
        states.append("" if found.window else "none")
    title = "Speed-up over MHA's layer at the smallest window whose quality is within the margin of MHA's"
    return table(title, HEADERS, cells, states, HEADERS) if cells else None


def _margins(claims: Iterable[Claim]) -> dict[str, float]:
    """Task -> the smallest margin in accuracy that a claim about it has, where that is above 0."""
    found: dict[str, float] = {}
    for claim in claims:
        task = (claim.rule or {}).get("task")
        if task and claim.margin > 0:
            found[task] = min(claim.margin, found.get(task, claim.margin))
    return found
