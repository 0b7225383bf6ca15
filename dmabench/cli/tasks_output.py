"""What the command of a task prints: cells before a run; tables, notes and what to do next after it."""

import sys
from typing import TYPE_CHECKING, Any

from dmabench.cli.output import WIDTH, exit_code, json_lines, say, to_stdout
from dmabench.tasks.task import Task
from dmabench.trials.cells import Trial, text, varying
from dmabench.trials.roof import Roof, roof_of
from dmabench.trials.run import CELLS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dmabench.store.runs import Run

Row = dict[str, Any]


def print_trials(task: Task, trials: list[Trial], device: str, as_json: bool) -> None:
    """What --dry-run shows: the cells, each with what it takes at most; seeds on one line."""
    roof = roof_of(device)
    if as_json:
        lines = [_as_json(trial, roof) for trial in trials]
        to_stdout(lambda console: json_lines(console, lines))
        return
    reasons: list[str] = []
    groups = [(_shared(task, group), _cells_table(task, group, roof, reasons)) for group in _alike(task, trials)]
    tuning = roof.once(trials)
    seconds = sum(roof.seconds(trial) for trial in trials) + tuning
    count = f"{len(trials)} cell{'s' * (len(trials) != 1)}"

    def write(console: "Console") -> None:
        from rich.text import Text

        console.print(Text(f"{task.name}: {count}, about {_time(seconds)}; nothing was trained", style="bold"))
        for number, (shared, table) in enumerate(groups):
            console.print(Text("\n" * (number > 0) + shared))
            console.print(table)
        for number, reason in enumerate(reasons, start=1):
            console.print(Text(f"[{number}] cannot be: {reason}"), style="dim")

    to_stdout(write)
    say(f"time on one device, at most (training may stop early), a cell at a time: {roof.about}", "dim")
    if tuning:
        say(f"among it {tuning:.0f} s once, in which nsa tunes its kernels: as long as that was seen, or longer", "dim")


def _alike(task: Task, trials: list[Trial]) -> list[list[Trial]]:
    """Cells that the same axes apply to, axes of one attention aside: a table of all would be mostly empty and wide."""
    common = [axis.name for axis in task.axes if not axis.only]
    groups: dict[tuple[bool, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(trial.settings[name] is None for name in common), []).append(trial)
    return list(groups.values())


def _shared(task: Task, trials: list[Trial]) -> str:
    """The axes in which these cells agree."""
    names = [axis.name for axis in task.axes if axis.name not in varying(task, trials)]
    values = {name: text(trials[0].settings[name]) for name in names}
    return " · ".join(f"{name} {value}" for name, value in values.items() if value)


def _as_json(trial: Trial, roof: Roof) -> Row:
    cost = trial.cost
    told = {"tokens": cost.tokens, "flops": cost.flops, "minutes": roof.seconds(trial) / 60, "mib": cost.mib}
    status = "UNSUPPORTED" if trial.refusal else None
    head = {"task": trial.task, "cell": trial.id, "status": status, "reason": trial.refusal}
    return {**head, **trial.settings, **told}


def _cells_table(task: Task, trials: list[Trial], roof: Roof, reasons: list[str]) -> "Table":
    from rich import box
    from rich.table import Table

    names = [name for name in varying(task, trials) if name != "seed"]
    seeds = "seed" in varying(task, trials)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    types = {axis.name: axis.type for axis in task.axes}
    for name in names:
        table.add_column(name, justify="left" if types[name] is str else "right", overflow="fold")
    for header in [*["seeds"] * seeds, "tokens", "time", "MiB"]:
        table.add_column(header, justify="right", no_wrap=True)
    merged: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        merged.setdefault(tuple(text(trial.settings[name]) for name in names), []).append(trial)
    for values, same in merged.items():
        cost, refusal = same[0].cost, same[0].refusal
        told = [",".join(text(trial.settings["seed"]) for trial in same)] * seeds
        if refusal:
            if refusal not in reasons:
                reasons.append(refusal)
            table.add_row(*values, *told, f"[{reasons.index(refusal) + 1}]".replace("[", r"\["), "", "", style="dim")
        else:
            seconds = sum(roof.seconds(trial) for trial in same)
            tokens = _millions(sum(trial.cost.tokens for trial in same))
            table.add_row(*values, *told, tokens, _time(seconds), f"{cost.mib:,.0f}")
    return table


def _time(seconds: float) -> str:
    if seconds < 1:
        return "<1 s"
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _millions(tokens: int) -> str:
    return f"{tokens / 1e9:.3g}B" if tokens >= 1e9 else f"{tokens / 1e6:.3g}M" if tokens >= 1e5 else str(tokens)


def print_run(task: Task, run: "Run", rows: list[Row], which: str, as_json: bool, interrupted: bool, cells: int) -> int:
    """The rows of a run on stdout; everything else, and the files it left, on stderr. Returns the exit code.

    Args:
        which: the settings it ran with, in words.
        cells: how many were asked for.
    """
    from dmabench.charts.tasks import draw_run
    from dmabench.report import held_out
    from dmabench.tables.tasks import notes, tables

    # Before anything is printed: whoever reads stdout may hang up (`| head`), and the files must be there all the same.
    drawn, undrawn = [], ""
    try:
        drawn = draw_run(run.path) + held_out.draw_run(run.path, task)
    except (
        Exception
    ) as error:  # a full disk, or rows of a task that no chart foresaw: hours of training are shown anyway
        if "--debug" in sys.argv:
            raise
        undrawn = f"The charts could not be drawn ({type(error).__name__}: {error}); --debug shows where it happened."
    width = WIDTH
    if as_json:
        to_stdout(lambda console: json_lines(console, rows))
    elif rows:

        def write(console: "Console") -> None:
            nonlocal width
            width = min(WIDTH, console.width)
            for number, table in enumerate(tables(task, rows, width)):
                if number:
                    console.print()
                console.print(table)

        to_stdout(write)
    say(which, "dim")
    for note in notes(task, rows, width):
        say(f"note: {note}", "yellow")
    if undrawn:
        say(undrawn, "yellow")
    if interrupted:
        done = len({row["cell"] for row in rows})
        told = f"{done} of {cells} cells are stored" if done else "no cell is finished yet"
        saved = len({path.parent for path in run.path.glob(f"{CELLS}/*/*")})
        one = "the checkpoint of one" if saved == 1 else f"the checkpoints of {saved}"
        if saved:
            told += f", and {one} more" if done else f", but {one} {'is' if saved == 1 else 'are'} kept"
        say(f"Interrupted: {told}. Repeat the command with --resume {run.name} to go on.", "bold")
    elif not any(row["status"] == "PASSED" for row in rows):
        say("Nothing could be scored: every row says why.")
    say(f"{'rows and charts' if drawn else 'rows'}: {run.path}", wrap=False)
    return exit_code(rows, interrupted)
