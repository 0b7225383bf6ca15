"""`dmabench list runs` as a terminal shows it: a table for each folder that holds runs."""

from typing import Any

import typer

from dmabench.store.rows import STATUSES
from dmabench.store.run_list import UNREADABLE


def print_runs(listed: list[dict[str, Any]]) -> None:
    """The tables on standard output; under them, on standard error, why a run cannot be read."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmabench.cli.output import to_stdout

    tables = []
    for folder in dict.fromkeys(one["folder"] for one in listed):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        if folder != ".":
            table.title, table.title_justify = Text(f"{folder}/", style="bold"), "left"
        # The name is what people copy: it is never cut. It says when, what and on which commit.
        for column in ("run", "commit", "device", "status", "rows"):
            table.add_column(column, no_wrap=column == "run", overflow="fold")
        for one in (one for one in listed if one["folder"] == folder):
            table.add_row(
                one["name"], *(Text(one[key] or "") for key in ("commit", "device")), _status(one), _rows(one)
            )
        tables.append(table)
    for number, table in enumerate(tables):
        to_stdout(lambda console, table=table, number=number: console.print(*[""] * (number > 0), table))  # type: ignore[misc]
    for one in listed:
        if one["status"].startswith(UNREADABLE):
            typer.echo(one["status"], err=True)


def _status(one: dict[str, Any]) -> str:
    status: str = one["status"].partition(":")[0]
    return status + (f", {one['damaged']} damaged" if one["damaged"] else "")


def _rows(one: dict[str, Any]) -> str:
    """How many rows, by status."""
    if one["rows"] is None:
        return ""
    counts: dict[str, int] = one["statuses"]
    order = [status for status in STATUSES if status in counts]
    return ", ".join(f"{counts[status]} {status}" for status in dict.fromkeys([*order, *counts])) or "none"
