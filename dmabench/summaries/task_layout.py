"""What stands in the tables of trained models, before anything draws them: headers, text, width."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dmabench.summaries.controls import UNDERTRAINED
from dmabench.summaries.tasks import Row, extrapolation, shared, summaries, varying
from dmabench.summaries.training_speed import measured
from dmabench.tasks.task import Task

Column = Callable[[Row], str]
HEADERS = {
    "seqlen": "T",
    "window": "w",
    "d_model": "d",
    "mla_latent": "latent",
    "nsa_topk": "top-k",
    "train_len": "trained",
    "short_conv": "conv",
}
SHOWN = (
    *("kind", "pattern", "distance", "copied", "marked", "pairs", "seqlen", "train_len", "vocab", "window"),
    *("d_model", "layers", "heads", "positions", "short_conv", "lr"),
)
"""Settings that the line above a table tells when all rows share them."""
ORDER = ("mha", "swa", "mla", "nsa", "dma")
LEFT = ("attention", "kind", "pattern", "positions", "status", "interval", "")
"""Headers of columns that hold words."""
KEPT = ("pairs_kept", "kept")
"""Fields that may say which share of the keys that matter an attention keeps."""


class Sheet(NamedTuple):
    """One table: the line above it, headers, text cells, and what each line is ("", UNDERTRAINED or its status)."""

    title: str
    headers: list[str]
    cells: list[list[str]]
    states: list[str]


def sheets(task: Task, rows: Sequence[Row], width: int | None = None) -> list[Sheet]:
    """The tables of a task's rows, at most `width` columns wide where columns can be left out (None: any)."""
    if not rows:
        return []
    if any(row.get("test_len") is not None for row in rows):
        return _by_length(task, rows, width)
    found = sorted(summaries(task, rows), key=lambda row: place(task, row))
    if any("pattern" == axis.name for axis in task.axes) and (one := _matrix(task, found, width)):
        return [one]
    return [_sheet(task.title, task, same, _columns(task, same), width) for same in _alike(task, found)]


def _alike(task: Task, rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that the same axes apply to, axes of one attention aside: a table of all would be mostly empty, and so wide
    that what was measured is left out of it."""
    common = [axis.name for axis in task.axes if not axis.only]
    groups: dict[tuple[bool, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) is None for name in common), []).append(row)
    return list(groups.values())


def place(task: Task, row: Row) -> tuple[Any, ...]:
    """Where a row stands: by its settings, then attentions in their order."""
    kind = row.get("attention")
    order = ORDER.index(kind) if kind in ORDER else len(ORDER)
    own = [axis.name for axis in task.axes if axis.of_model]
    common = [axis for axis in task.axes if axis.name not in ("attention", "lr", "seed", *own)]
    # Words in the order that their axis gives them, numbers by size.
    places = [
        _sortable(axis.choices.index(row[axis.name]) if row.get(axis.name) in axis.choices else row.get(axis.name))
        for axis in common
    ]
    return (*places, _sortable(row.get("kind")), order, *(_sortable(row.get(name)) for name in own))


def name_of(row: Row) -> str:
    """The attention, with the size that only it has ("mla 64")."""
    if row.get("attention") is None and row.get("model"):  # it could not be loaded
        return str(row["model"])
    size = {"mla": row.get("mla_latent"), "nsa": row.get("nsa_topk")}.get(str(row.get("attention")))
    return str(row.get("attention")) + (f" {size}" if size is not None else "")


def length(value: Any) -> str:
    """A number of tokens, in k = 1024 where it comes out even."""
    return f"{value // 1024}k" if isinstance(value, int) and value >= 1024 and value % 1024 == 0 else text(value)


def text(value: Any) -> str:
    """A value in a cell; empty for None."""
    if value is None or isinstance(value, list | tuple):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def share(value: float | None, digits: int = 3) -> str:
    """An accuracy or a share; never rounded up to 1."""
    return "" if value is None else f"{min(value, 1 - 0.1**digits) if value < 1 else value:.{digits}f}"


def interval(row: Row) -> str:
    """Low to high of the accuracy."""
    return f"{share(row['low'])}-{share(row['high'])}" if row.get("low") is not None else ""


def _columns(task: Task, rows: Sequence[Row]) -> dict[str, Column]:
    columns = _settings(task, rows)
    ratios = [row for row in rows if row.get("pairs") and row.get("window")]
    if ratios:
        columns["w/pairs"] = lambda row: (
            f"{row['window'] / row['pairs']:.3g}" if row.get("pairs") and row.get("window") else ""
        )
    if any(row.get("accuracy") is not None for row in rows):
        columns["accuracy"] = lambda row: share(row.get("accuracy"))
    if any(row.get("low") is not None for row in rows):
        columns["interval"] = interval
    told = {"accuracy", "correct", "total", "chance", "infer_ms", *columns}
    kept = next((name for name in KEPT if any(row.get(name) is not None for row in rows)), None)
    if kept:
        columns["kept"] = lambda row: share(row.get(kept))
        told.add(kept)
    if any(row.get("infer_ms") for row in rows):
        columns["ms"] = lambda row: f"{row['infer_ms']:.3g}" if row.get("infer_ms") else ""
        columns["vs MHA"] = lambda row: f"{row['speedup']:.2f}x" if row.get("speedup") else ""
    axes = {axis.name for axis in task.axes}
    for field in task.columns:
        if field not in told | axes and any(measured(row, field) is not None for row in rows):
            columns[field.replace("_", " ")] = lambda row, field=field: _brief(measured(row, field))  # type: ignore[misc]
    return columns | _status(rows)


def _settings(task: Task, rows: Sequence[Row]) -> dict[str, Column]:
    """A column for every axis in which the rows differ; the attention always."""
    own = [axis.name for axis in task.axes if axis.of_model]
    left_out = ("attention", "window", "mla_latent", "nsa_topk", "seed", "lr", "train_len")
    columns: dict[str, Column] = {}
    for name in varying(task, rows, left_out):
        columns[HEADERS.get(name, name.replace("_", " "))] = lambda row, name=name: length(row.get(name))  # type: ignore[misc]
    columns["attention"] = name_of if own else lambda row: text(row.get("attention"))
    if len({row.get("window") for row in rows if row.get("window") is not None}) > 1:
        columns["w"] = lambda row: text(row.get("window"))
    if len({row.get("lr") for row in rows}) > 1:
        columns["lr"] = lambda row: text(row.get("lr"))
    return columns


def _status(rows: Sequence[Row]) -> dict[str, Column]:
    return {"status": lambda row: text(row.get("status"))} if any(row.get("status") != "PASSED" for row in rows) else {}


def _sheet(title: str, task: Task, rows: Sequence[Row], columns: dict[str, Column], width: int | None) -> Sheet:
    """The table, without the columns that it can best do without where it is too wide."""
    needed = ("attention", "accuracy", "status", "w", "ratio", "effective", "")
    fields = [field.replace("_", " ") for field in task.columns]
    order = [*reversed(fields), "ms", "lr", "w/pairs", "interval", "kept", "vs MHA", "within", "beyond"]
    droppable = [header for header in order if header in columns and header not in needed]
    while True:
        cells = [[cell(row) for cell in columns.values()] for row in rows]
        widths = [max([len(header), *(len(line[at]) for line in cells)]) for at, header in enumerate(columns)]
        if width is None or not droppable or sum(widths) + 2 * len(widths) - 2 <= width:
            break
        del columns[droppable.pop(0)]
    return Sheet(_title(title, task, rows), list(columns), cells, [state(row) for row in rows])


def _title(title: str, task: Task, rows: Sequence[Row]) -> str:
    words = [title, *shared_words(task, rows)]
    seeds = sorted({row["seeds"] for row in rows if row.get("seeds")})
    if seeds:
        words.append(f"{'-'.join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))} seed{'s' * (seeds != [1])}")
    chance = {row["chance"] for row in rows if row.get("chance") is not None}
    if len(chance) == 1:
        words.append(f"chance {next(iter(chance)):.2g}")
    return " · ".join(words)


def shared_words(task: Task, rows: Sequence[Row], without: Sequence[str] = ()) -> list[str]:
    """The settings that all rows share, in words."""
    same = shared(task, rows)
    names = [name for name in SHOWN if name in same and name not in without and same[name] != 0]
    return [f"{HEADERS.get(name, name)} {length(same[name])}" for name in names]


def words_with_size(task: Task, rows: Sequence[Row]) -> list[str]:
    """The same, and before them the size of the model where there is one."""
    sizes = {row.get("size") for row in rows} - {None}
    return [f"size {size}" for size in sizes if len(sizes) == 1] + shared_words(task, rows)


def _by_length(task: Task, rows: Sequence[Row], width: int | None) -> list[Sheet]:
    """Needles: a table for each trained length, mean accuracy over depths by test length."""
    models = sorted(extrapolation(task, rows), key=lambda row: place(task, row))
    found = []
    for trained in sorted({row.get("train_len") for row in models}, key=_sortable):
        mine = [row for row in models if row.get("train_len") == trained]
        columns = _settings(task, mine)
        for tested in sorted({one for row in mine for one in row["lengths"]}):
            header = length(tested) + ("*" if trained and tested > trained else "")
            columns[header] = lambda row, tested=tested: share(row["lengths"].get(tested), 2)  # type: ignore[misc]
        columns["within"] = lambda row: share(row["within"])
        columns["beyond"] = lambda row: share(row["beyond"])
        columns["ratio"] = lambda row: "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        columns["effective"] = lambda row: length(row["effective"]) if row["lengths"] else ""
        found.append(_sheet(task.title, task, mine, columns | _status(mine), width))
    return found


def _matrix(task: Task, rows: Sequence[Row], width: int | None) -> Sheet | None:
    """Patterns: attentions down, patterns across; None where that is too wide."""
    across, lines, cells = matrix(task, rows)
    table = [[_short(cells.get((line, column))) for column in across] for line in lines]
    columns = [max([len(header), *(len(one[at]) for one in table)]) for at, header in enumerate(across)]
    names = max(len("attention"), *(len(line) for line in lines))
    if width is not None and names + sum(columns) + 2 * len(columns) > width:
        return None
    states = []
    for line in lines:
        of_line = [state(row) for (name, _), row in cells.items() if name == line]
        states.append(of_line[0] if len(set(of_line)) == 1 else "")
    texts = [[line, *row] for line, row in zip(lines, table, strict=True)]
    return Sheet(_title(task.title, task, rows), ["attention", *across], texts, states)


def matrix(task: Task, rows: Sequence[Row]) -> tuple[list[str], list[str], dict[tuple[str, str], Row]]:
    """Columns (the pattern and its settings that differ), lines (the attention and its own), and the row of each."""
    own = [axis.name for axis in task.axes if axis.of_model]
    differing = varying(task, rows, ("attention", "lr", "seed", "pattern", *own))
    windows = len({row.get("window") for row in rows if row.get("window") is not None}) > 1
    cells: dict[tuple[str, str], Row] = {}
    for row in rows:
        of_pattern = [one for one in rows if one.get("pattern") == row.get("pattern")]
        words = [str(row.get("pattern"))]
        words += [
            f"{HEADERS.get(name, name)} {length(row[name])}"
            for name in differing
            if row.get(name) is not None and len({str(one.get(name)) for one in of_pattern}) > 1
        ]
        line = name_of(row) + (f" w {row['window']}" if windows and row.get("window") else "")
        cells[line, " ".join(words)] = row
    return list(dict.fromkeys(c for _, c in cells)), list(dict.fromkeys(line for line, _ in cells)), cells


def state(row: Row) -> str:
    """What a line is: "" for one that counts, else UNDERTRAINED or the status of a cell without a score."""
    status = str(row.get("status"))
    return "" if status == "PASSED" else status


def _brief(value: Any) -> str:
    """A measured number, to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else text(value)


def _short(row: Row | None) -> str:
    if row is None:
        return ""
    if row.get("accuracy") is None:
        return str(row.get("status"))
    told = share(row["accuracy"])
    if row.get("status") == UNDERTRAINED:
        return f"({told})"
    return f"{told} [{interval(row)}]" if row.get("low") is not None else told


def _sortable(value: Any) -> tuple[bool, Any]:
    """None first, and cells that failed with all their parts; words and numbers never meet in one axis."""
    value = None if isinstance(value, list | tuple) else value
    return (value is not None, 0 if value is None else value)
