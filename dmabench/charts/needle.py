"""Needles: accuracy by length and depth as heat maps, and each attention's difference from MHA."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmabench.charts.parts import apart, dress, grid, rows_of, stem_of
from dmabench.summaries.controls import CONTROL, UNDERTRAINED, part
from dmabench.summaries.task_layout import length, name_of, place, shared_words
from dmabench.summaries.tasks import summaries
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Row = dict[str, Any]
ACROSS = 3
"""Maps beside each other."""


def draw(task: Task, rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """For every kind and setting the accuracies of all attentions, and their differences from MHA where it was run."""
    import pandas

    lines = sorted(summaries(task, rows), key=lambda row: place(task, row))
    lines = [
        {**row, "name": _name(row, lines)} for row in lines if part(row, "test_len") and row.get("accuracy") is not None
    ]
    figures: dict[str, Figure] = {}
    for chart in apart(task, pandas.DataFrame(lines), ("window", "train_len")):
        for trained, chosen in chart.groupby("train_len", dropna=False, sort=True):
            maps = {name: _table(mine) for name, mine in chosen.groupby("name", sort=False)}
            hatched = {name: bool(mine["status"].eq(UNDERTRAINED).any()) for name, mine in chosen.groupby("name")}
            words = shared_words(task, rows_of(chosen), ("test_len", "depth"))
            line = [f"line: trained at {length(int(trained))}, longer to its right"] * (trained == trained)
            texts = dict.fromkeys(row["text"] for row in rows_of(chosen) if row.get("text"))
            line += [f"in RULER's wording, in the text {', '.join(texts)}"] * bool(texts)
            figure = _figure(maps, hatched, trained, "cividis", (0, 1))
            dress(figure, f"{task.title}: accuracy by length and depth", words, chosen, about, line)
            figures[stem_of("accuracy", task, figures)] = figure
            if CONTROL in maps and len(maps) > 1:
                apart_from = {name: one - maps[CONTROL] for name, one in maps.items() if name != CONTROL}
                figure = _figure(apart_from, hatched, trained, "RdBu", (-1, 1))
                dress(figure, f"{task.title}: accuracy minus that of MHA", words, chosen, about, line)
                figures[stem_of("difference", task, figures)] = figure
    return figures


def _name(row: Row, lines: Sequence[Row]) -> str:
    windows = {one.get("window") for one in lines if one.get("window") is not None}
    models = {one.get("model") for one in lines if one.get("model") is not None}
    model = f" {row['model']}" if len(models) > 1 and row.get("model") else ""
    return name_of(row) + model + (f", w {row['window']}" if len(windows) > 1 and row.get("window") else "")


def _table(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """Depths down, lengths across."""
    return frame.pivot_table(index="depth", columns="test_len", values="accuracy", dropna=False).sort_index()


def _figure(
    maps: "dict[str, pandas.DataFrame]",
    hatched: dict[str, bool],
    trained: float,
    colours: str,
    limits: tuple[float, float],
) -> "Figure":
    from matplotlib.figure import Figure

    first = next(iter(maps.values()))
    across, down = min(ACROSS, len(maps)), -(-len(maps) // ACROSS)
    cell = 0.34
    wide, high = max(1.5, cell * len(first.columns)), max(0.5, 0.19 * len(first.index))
    width = max(5.4, 0.75 + across * (wide + 0.25) + 0.85)
    height = 1.05 + down * (high + 0.62)
    figure = Figure(figsize=(width, height), layout=None)
    cells: Any = None
    for number, (name, table) in enumerate(maps.items()):
        left = 0.6 + (number % ACROSS) * (wide + 0.25)
        bottom = height - 0.78 - high - (number // ACROSS) * (high + 0.62)
        axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
        texts = [[_text(value, limits[0] < 0) for value in line] for line in table.to_numpy()]
        marks = [[hatched[name]] * len(table.columns) for _ in table.index]
        cells = grid(axes, table.to_numpy(), texts, marks, colours, limits)
        axes.set_title(name, fontsize=8)
        axes.set_xticks(
            [at + 0.5 for at in range(len(table.columns))], [length(int(one)) for one in table.columns], fontsize=6.5
        )
        depths = [f"{depth:g}" for depth in table.index]
        axes.set_yticks([at + 0.5 for at in range(len(depths))], depths, fontsize=6.5)
        if number % ACROSS:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("depth (%)", fontsize=7)
        if number // ACROSS == down - 1 or number + ACROSS >= len(maps):
            axes.set_xlabel("test length", fontsize=7)
        inside = sum(one <= trained for one in table.columns) if trained == trained else len(table.columns)
        if 0 < inside < len(table.columns):
            axes.axvline(inside, color="#d55e00", linewidth=1.8)
    bar_left = 0.6 + across * (wide + 0.25)
    bar = figure.add_axes((bar_left / width, (height - 0.78 - high) / height, 0.12 / width, high / height))
    figure.colorbar(cells, cax=bar).outline.set_visible(False)
    bar.tick_params(labelsize=6.5, length=2)
    return figure


def _text(value: float, signed: bool) -> str:
    if value != value:
        return ""
    return f"{value:+.2f}".replace("0.", ".") if signed else f"{value:.2f}".replace("0.", ".")
