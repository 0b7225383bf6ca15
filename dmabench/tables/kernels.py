"""Rows of `dmabench kernels` as tables for a terminal, a README and pandas. No table without summaries/lints.py."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dmabench.store.rows import FAILURES
from dmabench.summaries.lints import lints
from dmabench.summaries.speedups import add_speedups
from dmabench.tables.layout import SHAPES, WORDS, Layout, layout

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

__all__ = ["add_speedups", "drawn", "kernels_frame", "kernels_table", "lints", "markdown_lines", "markdown_table"]

Row = dict[str, Any]

TIMES = ("importance_ms", "plan_ms", "kernel_ms", "gpu_ms", "wall_ms", "total_ms", "p10_ms", "p90_ms", "compile_s")
RATES = ("useful_tflops", "executed_tflops", "roof_percent", "density", "speedup")
NUMBERS = (*SHAPES, *TIMES, *RATES, "samples", "peak_mib", "cache_mib", "error", "error_budget", "seed")
TEXTS = (
    "schema",
    "run",
    "cell",
    "utc",
    "function",
    "backend",
    "pass",
    "level",
    "status",
    "reason",
    "dtype",
    "delta",
    "device",
)


def kernels_table(rows: Iterable[Row], width: int = 100) -> "Table":
    """The rows as a rich table of at most `width` columns.

    Fields that all rows share stand in the title; the reason of every row that is not PASSED is a note under the
    table. Where it would be too wide, columns are merged or left out, and a note says so. Times in ms.
    """
    return drawn(layout(list(rows), width), _colour)


def _colour(row: Row) -> str:
    status = row.get("status")
    return "" if status == "PASSED" else "red" if status in FAILURES else "dim"


def drawn(shown: Layout, colour: Callable[[Row], str]) -> "Table":
    """A layout as a rich table; `colour` is the style of a row's line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lengths = [max(map(len, column)) for column in zip(shown.headers, *shown.cells, strict=True)]
    caption = wrapped(shown.caption.split(" · "), sum(lengths) + len(lengths) - 1)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        title=Text(caption, style="bold"),
        title_justify="left",
        caption=Text("\n".join(shown.notes)) if shown.notes else None,
        caption_justify="left",
    )
    for number, header in enumerate(shown.headers):
        left = header in WORDS
        table.add_column(
            header, justify="left" if left else "right", no_wrap=True, overflow="fold" if number else "ellipsis"
        )
    for cells, row in zip(shown.cells, shown.rows, strict=True):
        table.add_row(*(Text(cell) for cell in cells), style=colour(row))
    return table


def wrapped(parts: list[str], width: int) -> str:
    """The parts of a caption on lines of at most `width` columns, broken between them and not inside ("G 1")."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def markdown_table(rows: Iterable[Row]) -> str:
    """The same table in Markdown, for a README: caption, table, notes."""
    shown = layout(list(rows), width=None)
    lines = markdown_lines(shown.headers, shown.cells, WORDS)
    notes = [f"- {note}" for note in shown.notes]
    return "\n".join([shown.caption, "", lines, *(["", *notes] if notes else [])]) + "\n"


def markdown_lines(headers: Sequence[str], cells: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """A table in Markdown; columns whose header is in `words` are set left, the others right."""

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts) + " |"

    sides = ["---" if header in words else "---:" for header in headers]
    return "\n".join([line(headers), line(sides), *map(line, cells)])


def kernels_frame(rows: Iterable[Row]) -> "pandas.DataFrame":
    """The rows as a tidy frame: every field of the row schema a column, numbers numeric (NaN where null), and `id`
    (function/backend). Fields beyond the schema stay."""
    import pandas

    frame = pandas.DataFrame(list(rows))
    for column in (*TEXTS, *NUMBERS):
        if column not in frame:
            frame[column] = None
    for column in NUMBERS:
        frame[column] = pandas.to_numeric(frame[column], errors="coerce").astype(float)
    frame["id"] = [
        f"{function}/{backend}" for function, backend in zip(frame["function"], frame["backend"], strict=True)
    ]
    return frame
