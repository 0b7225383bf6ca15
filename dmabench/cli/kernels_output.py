"""What `dmabench kernels` prints: cells before a run; rows, doubts and what to do next after it."""

from typing import TYPE_CHECKING, Any

from dmabench.cli.output import WIDTH, json_lines, say, to_stdout
from dmabench.workload.cells import Cell, by_shape

if TYPE_CHECKING:
    from dmabench.store.runs import Run

Row = dict[str, Any]


def print_cells(cells: list[Cell], as_json: bool) -> None:
    """What --dry-run shows: one line for each pass and shape, or one JSON line for each cell."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if as_json:
        to_stdout(lambda console: json_lines(console, [{"cell": cell.id, **cell.settings()} for cell in cells]))
        return
    shapes = len(by_shape(cells))
    title = f"{len(cells)} cell{'s' * (len(cells) != 1)} in {shapes} shape{'s' * (shapes != 1)}; nothing was measured"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    level = ["level"] * any(cell.shape.level != "kernel" for cell in cells)
    for column in ("pass", *level, "T", "w", "B", "H", "G", "D", "dtype", "delta", "backends"):
        words = column in ("pass", "level", "dtype", "delta", "backends")
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "backends", overflow="fold")
    merged: dict[tuple[Any, ...], list[str]] = {}
    for cell in cells:
        s = cell.shape
        sizes = (s.batch, s.heads, s.kv_heads, s.head_dim)
        key = (s.pass_, *[s.level for _ in level], s.seqlen, cell.window or "", *sizes, s.dtype, cell.delta or "")
        paper = cell.function == "nsa" and cell.window is None
        merged.setdefault(key, []).append(f"{cell.name} (paper)" if paper else cell.name)
    for key, names in merged.items():
        table.add_row(*(Text(str(value)) for value in key), ", ".join(names))
    to_stdout(lambda console: console.print(table))


def print_run(run: "Run", rows: list[Row], which: str, as_json: bool, interrupted: bool, left: int) -> None:
    """The rows of a run on stdout; everything else, and the files it left, on stderr.

    Args:
        which: the settings it ran with, in words.
        left: cells that were asked for and have no row.
    """
    from dmabench.charts.kernels import draw_run
    from dmabench.claims.verdicts import reported_table
    from dmabench.tables.break_even import losses
    from dmabench.tables.kernels import drawn, kernels_table, lints

    # Before anything is printed: whoever reads stdout may hang up (`| head`), and the files must be there all the same.
    charts, undrawn = [], ""
    try:
        charts = draw_run(run.path)
    except OSError as error:  # a full disk, say: the rows are stored and are shown all the same
        undrawn = f"The charts could not be written: {error.strerror or error}."
    if as_json:
        to_stdout(lambda console: json_lines(console, rows))
    elif rows:
        to_stdout(lambda console: console.print(kernels_table(rows, width=min(WIDTH, console.width))))
        lost = losses(rows)
        if lost is not None:
            to_stdout(lambda console: console.print(drawn(lost, lambda _: "")))
        beside = reported_table(rows)
        if beside is not None:
            to_stdout(lambda console: console.print(beside))
    say(f"{which}; times in ms, medians", "dim")
    for lint in lints(rows, run.manifest["gpu_state"]):
        say(f"note: {lint}", "yellow")
    if undrawn:
        say(undrawn, "yellow")
    if interrupted:
        done = "nothing was measured yet" if not rows else f"{len(rows)} of {len(rows) + left} cells are stored"
        say(f"Interrupted: {done}. Repeat the command with --resume {run.name} to go on.", "bold")
    elif not any(row["status"] == "PASSED" for row in rows):
        say("Nothing could be measured: every row says why; `dmabench list backends` shows what runs here.")
    files = "rows, samples and charts" if charts else "rows and samples"
    say(f"{files}: {run.path}", wrap=False)
