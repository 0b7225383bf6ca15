"""What `dmabench eval` prints: what a folder serves, what would be scored, the progress, and tables after a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmabench.cli.eval_input import Asked
from dmabench.cli.output import exit_code, json_lines, progress_bars, say, to_stdout
from dmabench.errors import Refusal
from dmabench.evals.cells import EvalCell
from dmabench.evals.tables import ASKED, BESIDE, SCORES, audits, beside_paper, notes, scores, table
from dmabench.store.run_folder import read_samples
from dmabench.tasks.downstream import catalogue, local_data

MODELS_A_TABLE = 4
Told = Callable[[EvalCell, str, int, int], None]


def print_served(data: str, as_json: bool) -> None:
    """Which tasks a folder can serve, and what it lacks for the others."""
    try:
        folder = local_data.find_folder(data)
    except ValueError as error:
        raise Refusal(str(error)) from error
    found = local_data.served(folder)
    if as_json:
        lines = [
            {
                "task": one.task,
                "served": not one.missing,
                "examples": one.examples,
                "missing": list(one.missing),
                "fewshot_missing": list(one.fewshot_missing),
            }
            for one in found
        ]
        to_stdout(lambda console: json_lines(console, lines))
        return
    groups = catalogue.groups()
    listed = [one for one in found if not one.task.startswith("mmlu_") or one.task in groups]
    cells = [
        [
            one.task,
            "yes" if not one.missing else "no",
            "" if one.missing else str(one.examples),
            "" if one.missing else "no" if one.fewshot_missing else "yes",
            _missing(one),
        ]
        for one in listed
    ]
    subjects = sum(not one.missing for one in found if one.task.startswith("mmlu_") and one.task not in groups)
    headers = ["task", "served", "examples", "few-shot", "missing"]
    to_stdout(
        lambda console: console.print(table(headers, cells, f"What {data} serves", ("served", "few-shot", "missing")))
    )
    say(f"MMLU's subjects are tasks too (mmlu_anatomy, ...): {subjects} of {len(groups['mmlu'])} are served.", "dim")


def _missing(one: local_data.Served) -> str:
    files = dict.fromkeys(one.missing or one.fewshot_missing)
    return ", ".join(list(files)[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def print_asked(asked: Asked, limit: int | None, as_json: bool) -> None:
    """What --dry-run shows: every task on every model."""
    lines: list[dict[str, Any]] = []
    for model in asked.models:
        for window in asked.windows:
            for task, where in asked.tasks:
                for shots in asked.shots_of(task):
                    count = _examples(task, where, asked.data)
                    lines.append(
                        {
                            "model": model,
                            "window": window,
                            "task": task,
                            "data": where,
                            "shots": shots,
                            "examples": count if limit is None or count is None else min(limit, count),
                        }
                    )
    _say_left_out(asked)
    if as_json:
        to_stdout(lambda console: json_lines(console, lines))
        return
    headers = list(lines[0])
    cells = [["" if value is None else str(value) for value in line.values()] for line in lines]
    title = f"{len(lines)} cell{'s' * (len(lines) != 1)}; nothing was scored"
    to_stdout(lambda console: console.print(table(headers, cells, title, ("task", "data"))))


def _examples(task: str, where: str, folder: Path | None) -> int | None:
    if where == "sample":
        return local_data.sample_examples(task)
    if folder is not None and where != "made":
        return local_data.serve(folder, task).examples
    return None


@contextmanager
def progress_bar(cells: list[EvalCell], shown: bool) -> Iterator[tuple[Told, Callable[[int], None]]]:
    """A bar on stderr over the cells, with how far the one that runs is: functions to tell it, and to count cells."""
    from rich.progress import TimeRemainingColumn

    progress = progress_bars(TimeRemainingColumn(), shown=shown)
    with progress:
        whole = progress.add_task("tasks", total=len(cells))
        current = progress.add_task("starting", total=None)

        def told(cell: EvalCell, stage: str, done: int, total: int) -> None:
            shots = "" if cell.shots is None else f" {cell.shots} shots"
            progress.update(
                current, description=f"{stage} {cell.name}: {cell.task}{shots}", completed=done, total=total
            )

        yield told, lambda count: progress.advance(whole, count)


def print_run(run: Any, cells: list[EvalCell], asked: Asked, as_json: bool, interrupted: bool) -> int:
    """The rows of a run on stdout, what to doubt on stderr; the exit code."""
    from dmabench.evals.significance import compare

    place = {cell.id: at for at, cell in enumerate(cells)}
    rows = [row for row in run.rows() if row["cell"] in place]
    rows.sort(key=lambda row: (place[row["cell"]], row["part"]))
    p_values = compare(rows, read_samples(run.path))
    if as_json:
        to_stdout(lambda console: json_lines(console, rows))
    elif rows:
        _print_tables(rows, p_values)
    _say_left_out(asked)
    for note in notes(rows, p_values):
        say(f"note: {note}", "yellow")
    if interrupted:
        done = len({row["cell"] for row in rows})
        told = f"{done} of {len(cells)} tasks are stored" if done else "no task was finished yet"
        say(f"Interrupted: {told}. Repeat the command with --resume {run.name} to go on.", "bold")
    say(f"rows and scores of examples: {run.path}", wrap=False)
    return exit_code(rows, interrupted)


def _print_tables(rows: list[dict[str, Any]], p_values: Any) -> None:
    headers, cells = scores(rows, p_values)
    fixed, names = headers[:4], headers[4:]
    for start in range(0, len(names), MODELS_A_TABLE):
        of_part = slice(4 + start, 4 + start + MODELS_A_TABLE)
        part = [[*line[:4], *line[of_part]] for line in cells]
        made = table([*fixed, *headers[of_part]], part, SCORES, ("metric",))
        to_stdout(lambda console, made=made: console.print(made))  # type: ignore[misc]
    of_examples = table(*audits(rows), f"\n{ASKED}", ("models",))
    to_stdout(lambda console: console.print(of_examples))
    beside = beside_paper(rows)
    if beside is not None:
        to_stdout(lambda console: console.print(table(*beside, f"\n{BESIDE}")))


def _say_left_out(asked: Asked) -> None:
    if asked.left_out:
        say(f"note: left out of the suite: {'; '.join(asked.left_out)}", "yellow")
