"""What every measuring command prints in the same way: data on stdout, narration on stderr, and its exit code."""

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dmabench.store.rows import FAILURES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

Row = dict[str, Any]
WIDTH = 100
"""Columns of a table that goes into a file or a pipe."""


def say(text: str, style: str = "", wrap: bool = True) -> None:
    """A sentence on stderr. Wrapped for eyes alone: in a log, a sentence is a line."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=not (wrap and console.is_terminal))


def exit_code(rows: list[Row], interrupted: bool) -> int:
    """0 all well, 1 a cell failed, 3 nothing could be measured, 130 interrupted."""
    if interrupted:
        return 130
    if any(row["status"] in FAILURES for row in rows):
        return 1
    return 0 if any(row["status"] == "PASSED" for row in rows) else 3


def json_lines(console: "Console", rows: list[Row]) -> None:
    """One line a row."""
    for row in rows:
        console.file.write(json.dumps(row) + "\n")


def to_stdout(write: "Callable[[Console], None]") -> None:
    """Writes to stdout; a reader that hung up ends the output and nothing else, least of all the exit code."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    try:
        write(Quiet() if sys.stdout.isatty() or "COLUMNS" in os.environ else Quiet(width=WIDTH))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress_bars(*further: "ProgressColumn", shown: bool = True) -> "Progress":
    """Bars on stderr that count cells, and nothing where it is no terminal or they are not to be `shown`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *further)
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True)
