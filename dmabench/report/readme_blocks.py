"""The kinds of block that a README may hold: each makes its lines, and its charts, from rows of the runs it names."""

import fnmatch
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.charts.style import STYLE, with_dark_colours
from dmabench.charts.words import cells_of, ends, points_of
from dmabench.errors import Refusal
from dmabench.store.environment import device_name
from dmabench.store.run_folder import read_manifest, read_rows, read_samples
from dmabench.store.runs import provenance
from dmabench.summaries.speedups import add_speedups, fastest_dense, same_as_baseline, shape_of
from dmabench.tables.layout import HEADERS, TIE, backend_id, shared_and_differing, significant, speedup_text
from dmabench.workload.cells import delta_place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Made = tuple[list[str], dict[str, str]]
"""Lines of Markdown, and {path: SVG} of the charts that they show."""
TOTALS = {
    "graph": "replayed from a CUDA graph, so without launches",
    "wall": "the host's launches included",
    "gpu": "on the device",
}
CELLS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "total_ms": ("ms", lambda row: significant(row["total_ms"])),
    "kernel_ms": ("ms of the kernel alone", lambda row: significant(row.get("kernel_ms"))),
    "cache_mib": ("MiB of cache", lambda row: significant(row.get("cache_mib"))),
    "peak_mib": ("MiB of memory at the peak", lambda row: significant(row.get("peak_mib"))),
}
"""Fields that a cell may show, with what the caption calls them."""
PLACE = ("seqlen", "window", "delta")
"""What a line of `times` stands for."""


@dataclass(frozen=True)
class Asked:
    """What a block's first marker says: its kind, runs and options, and where it stands."""

    kind: str
    runs: tuple[str, ...]
    options: dict[str, str]
    where: str
    root: Path = field(default_factory=Path)

    @property
    def told(self) -> str:
        """Kind and runs, for people."""
        return " ".join((self.kind, *(Path(run).name for run in self.runs)))

    def option(self, name: str) -> str:
        """An option that must be there."""
        if not self.options.get(name):
            raise Refusal(f"{self.where}: a block {self.kind!r} needs {name}=...")
        return self.options[name]

    def only(self, names: Sequence[str], runs: int | None) -> None:
        """Refuses options that the kind does not have, and another number of runs; None: one or more."""
        unknown = sorted(set(self.options) - set(names))
        if unknown:
            raise Refusal(f"{self.where}: {self.kind} has no option {unknown[0]!r}; choose from {', '.join(names)}.")
        if runs is None and not self.runs:
            raise Refusal(f"{self.where}: {self.kind} takes one run or more, not 0.")
        if runs is not None and len(self.runs) != runs:
            raise Refusal(f"{self.where}: {self.kind} takes {runs} run{'s' * (runs != 1)}, not {len(self.runs)}.")

    def read(self, run: str) -> tuple[Path, dict[str, Any], list[Row]]:
        """Folder, manifest and rows of a run. A damaged line is refused: the README would rest on half of a run."""
        path = self.root / run
        try:
            manifest, (rows, problems) = read_manifest(path), read_rows(path)
        except Refusal as refusal:
            raise Refusal(f"{self.where}: {refusal}") from refusal
        if problems:
            raise Refusal(f"{self.where}: {problems[0]}. Name a run that is whole.")
        return path, manifest, [{**row, "run": path.name} for row in rows]


def times(asked: Asked) -> Made:
    """A line for each length, window and delta of one pass: dense attention, the backends of `columns`, and the
    speed-up of the fastest `dma` backend among them, over dense attention of the same run; then where it is slower.

    Options: pass, level, seqlen, window, delta (which rows: values with commas between), columns (backends in their
    order), fields (what a cell shows, CELLS; further ones in brackets). Several runs are of one device and commit.
    """
    asked.only(("pass", "level", "seqlen", "window", "delta", "columns", "fields"), runs=None)
    found = [asked.read(run) for run in asked.runs]
    abouts = dict.fromkeys(f"{device_name(manifest['environment'])} · {_about(manifest)}" for _, manifest, _ in found)
    if len(abouts) > 1:
        raise Refusal(f"{asked.where}: one table holds one device and commit, not {' and '.join(abouts)}.")
    manifest = found[0][1]
    columns, fields = asked.option("columns").split(","), asked.options.get("fields", "total_ms").split(",")
    unknown = [name for name in fields if name not in CELLS]
    if unknown:
        raise Refusal(f"{asked.where}: no cell can show {unknown[0]!r}; choose from {', '.join(CELLS)}.")
    by_run = [_chosen(asked, [row for row in add_speedups(rows) if row.get("function")]) for _, _, rows in found]
    rows = [row for of_run in by_run for row in of_run]
    timed = [row for row in rows if row.get("status") == "PASSED" and row.get("total_ms")]
    asked_for = [
        (place, of_run, dense)
        for of_run, dense in zip(by_run, map(fastest_dense, by_run), strict=True)
        for place in _places(of_run)
    ]
    asked_for.sort(key=lambda one: (*one[0][:2], delta_place(one[0][2])))
    # The length has a column always.
    shown_places = [name for at, name in enumerate(PLACE) if at and len({place[at] for place, _, _ in asked_for}) > 1]
    lines, best_of, bases = [], [], []
    for place, of_run, dense in asked_for:
        length, window, delta = place
        here = [row for row in of_run if row["seqlen"] == length and row.get("window") in (None, window)]
        here = [row for row in here if row.get("delta") in (None, delta)]
        of_id = {backend_id(row): row for row in sorted(here, key=lambda row: row.get("window") or 0)}
        base = next((dense[shape_of(row)] for row in here if shape_of(row) in dense), None)
        bases += [base] if base else []
        mine = [row for name, row in of_id.items() if name.startswith("dma/") and name in columns and row in timed]
        best = min(mine, key=lambda row: row["total_ms"], default=None)
        best_of += [best] if best else []
        cells = [_cell(base, fields), *(_cell(of_id.get(name), fields) for name in columns)]
        told_places = [str(value) for name, value in zip(PLACE, place, strict=True) if name in shown_places]
        lines.append([str(length), *told_places, *cells, speedup_text(best) if best else ""])
    if not bases:
        raise Refusal(
            f"{asked.where}: {' and '.join(asked.runs)} has no dense row beside rows with a window for these options."
        )
    told, differing = shared_and_differing(rows)
    if set(differing) - {"T", "w", "delta", HEADERS.get("run", "run")}:
        raise Refusal(f"{asked.where}: the rows differ in {', '.join(differing)}: choose one of each.")
    headers = ["tokens seen" if asked.options.get("pass") == "decode" else "T"]
    headers += [HEADERS.get(name, name) for name in shown_places]
    headers += ["dense", *columns, "speed-up"]
    names = dict.fromkeys(map(backend_id, bases))
    how = dict.fromkeys(TOTALS[row["total_is"]] for row in timed if row.get("total_is") in TOTALS)
    shown = ", in brackets ".join(CELLS[name][0] for name in fields)
    caption = [*told, _about(manifest), f"medians of {fields[0]} in {shown}, {' or '.join(how)}"]
    notes = [f"Dense is the fastest correct dense backend, here {' or '.join(names)}; the speed-up is over it."]
    notes.append(_losses(best_of))
    if any("~" in line[-1] for line in lines):
        notes.append(f"{TIE}.".replace("~", "`~`", 1))
    sources = [_source(run, manifest) for run, (_, manifest, _) in zip(asked.runs, found, strict=True)]
    return [" · ".join(caption) + ".", "", *_table(headers, lines, ("delta",)), "", " ".join(notes), *sources], {}


def scores(asked: Asked) -> Made:
    """The tables of a run of a task, as its command prints them, with the sentences that belong under them. Options:
    none."""
    from dmabench.report.tasks import task_section

    asked.only((), runs=1)
    path, manifest, rows = asked.read(asked.runs[0])
    if not _of_task(manifest):
        raise Refusal(f"{asked.where}: {asked.runs[0]} is no run of a task, but of {manifest.get('command')}.")
    section = task_section(path.name, manifest, rows, 0, charts=False)
    lines = [f"{device_name(manifest['environment'])} · {_about(manifest)}.", ""]
    for one in section["tables"]:
        lines += [f"{one['title']}.", "", *_table(one["headers"], one["cells"], one["words"]), ""]
    return [*lines, *(f"- {note}" for note in section["notes"]), "", _source(asked.runs[0], manifest)], {}


def chart(asked: Asked) -> Made:
    """A chart of the run, drawn into the file that `file` names. Options: chart (the stem of its file in the run's
    folder, such as speedup-fwd-h16g8d128-iid), file."""
    import matplotlib

    asked.only(("chart", "file"), runs=1)
    _, manifest, rows = asked.read(asked.runs[0])
    figures = _figures(manifest, rows)
    stem, file = asked.option("chart"), asked.option("file")
    if stem not in figures:
        raise Refusal(f"{asked.where}: {asked.runs[0]} has no chart {stem!r}; it has {', '.join(figures) or 'none'}.")
    figure = figures[stem]
    words = " ".join(f"{'; '.join(text.get_text() for text in figure.texts[:2])}. {ends(figure)}".split())
    about = {"Date": None, "Creator": "dmabench report --readme", "Description": _points(figure, asked, stem)}
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=about)
    drawn = "\n".join(line.rstrip() for line in with_dark_colours(buffer.getvalue()).splitlines()) + "\n"
    return [f"![{words}]({file})", "", _source(asked.runs[0], manifest)], {file: drawn}


def compare(asked: Asked) -> Made:
    """What `dmabench compare A B` sums up: how many cells of both got which verdict. No options."""
    from dmabench.compare.notes import differences
    from dmabench.compare.table import sums
    from dmabench.compare.verdicts import Measured
    from dmabench.compare.verdicts import compare as compared

    asked.only((), runs=2)
    found = [asked.read(run) for run in asked.runs]
    before, after = (
        Measured(rows, {one["cell"]: one for one in read_samples(path) if "cell" in one}) for path, _, rows in found
    )
    result = compared(before, after, alike=not differences(found[0][1], found[1][1]))
    if not result.cells:
        raise Refusal(f"{asked.where}: the two runs have no cell in common.")
    told = [sentence for sentence in sums(result) if not sentence.startswith("Only in")]
    return [" ".join(told), "", f"From `dmabench compare {' '.join(asked.runs)}`."], {}


KINDS: dict[str, Callable[[Asked], Made]] = {"times": times, "scores": scores, "chart": chart, "compare": compare}


def _of_task(manifest: dict[str, Any]) -> bool:
    from dmabench.report.tasks import is_task_run

    return is_task_run(manifest)


def _figures(manifest: dict[str, Any], rows: list[Row]) -> "dict[str, Figure]":
    """Every chart of a run, by the stem of its file."""
    from dmabench.charts import kernels
    from dmabench.report import tasks

    if _of_task(manifest):
        return tasks.figures_of(manifest, rows)
    return {} if kernels.nothing_to_draw(rows) else kernels.draw(rows, provenance(manifest))


def _points(figure: "Figure", asked: Asked, stem: str) -> str:
    """Run, chart, and every point and every cell of it: what decides whether a stored chart is still that of the
    rows."""
    lines = [
        [[float(f"{x:.4g}"), float(f"{y:.4g}") if y == y else None] for x, y in points_of(line)]
        for axes in figure.axes
        for line in axes.get_lines()
    ]
    cells = [[float(f"{x:.4g}") for x in shown.compressed()] for axes in figure.axes for shown in cells_of(axes)]
    told = {"runs": [Path(run).name for run in asked.runs], "chart": stem, "points": lines}
    return json.dumps(told | ({"cells": cells} if cells else {}))


def _chosen(asked: Asked, rows: list[Row]) -> list[Row]:
    """The rows that the options ask for; a row without a window or a delta stands beside every one."""
    for name in ("pass", "level", *PLACE):
        if wanted := asked.options.get(name, "").split(",") if asked.options.get(name) else None:
            none = {None} if name in ("window", "delta") else set()
            rows = [row for row in rows if row.get(name) in none or str(row.get(name)) in wanted]
    columns = asked.option("columns").split(",")
    # Only what is shown may decide what the rows differ in: a backend that is no column has no say.
    return [
        row
        for row in rows
        if row["function"] == "dense" or any(fnmatch.fnmatch(backend_id(row), pattern) for pattern in columns)
    ]


def _places(rows: list[Row]) -> set[tuple]:
    """What a run's lines stand for: PLACE of each. What has a window but no delta stands beside what has both."""
    places = {tuple(map(row.get, PLACE)) for row in rows if row.get("window") and row.get("seqlen")}
    return {place for place in places if place[-1] is not None} or places


def _cell(row: Row | None, fields: Sequence[str]) -> str:
    if row is None:
        return ""
    if row.get("status") != "PASSED":
        return str(row.get("status"))
    first, *rest = (CELLS[name][1](row) for name in fields)
    return first + (f" ({', '.join(rest)})" if rest else "")


def _losses(best: list[Row]) -> str:
    lost = [row for row in best if (row.get("speedup") or 1) < 1 and not same_as_baseline(row)]
    if not lost:
        return "The fastest of ours is slower than dense in no line."
    where = [f"T {row['seqlen']}, w {row['window']} ({significant(row['speedup'])}x)" for row in lost]
    return f"The fastest of ours is slower than dense at {'; '.join(where)}."


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[str] = ()) -> list[str]:
    from dmabench.tables.kernels import markdown_lines

    return markdown_lines(headers, lines, words).split("\n")


def _about(manifest: dict[str, Any]) -> str:
    about = provenance(manifest)
    return f"{about['versions']} · commit {about['commit']}"


def _source(run: str, manifest: dict[str, Any]) -> str:
    command = " ".join(map(str, manifest.get("argv") or []))
    return f"Source: rows of [{Path(run).name}]({run}), `dmabench {command}`."
