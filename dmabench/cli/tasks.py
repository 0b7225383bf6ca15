"""`dmabench mqar`, `dmabench needle`, ...: one command for each task, made from its axes when it is called."""

import math
import sys
from typing import Any

import typer

from dmabench.cli.task_options import signature
from dmabench.errors import Refusal
from dmabench.tasks import registry
from dmabench.tasks.task import Task
from dmabench.trials.cells import Blocks, Trial, blocks_of, make_trials, seeds_of, shard
from dmabench.trials.loading import load
from dmabench.trials.ranks import here
from dmabench.workload.axis_values import values_of


def add_to(app: typer.Typer) -> None:
    """Registers a name for each task. `command` makes the rest, since a task imports torch."""
    for name, about in registry.names().items():
        app.command(name, help=about, rich_help_panel="Evaluate")(lambda: None)


def command(name: str) -> Any:
    """The command of a task, with an option for each of its axes; None where there is no such task.

    Raises:
        Refusal: the task cannot be imported.
    """
    if name not in registry.names():
        return None
    task = load(name)

    def run(**options: Any) -> None:
        run_task(task, options)

    run.__signature__ = signature(task)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    one = typer.Typer(
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    examples = "\n\n".join(["[bold]Examples[/bold]", *(f"  {example}" for example in task.examples)])
    one.command(name, help=f"{task.title}\n\n{task.about}", epilog=examples)(run)
    return typer.main.get_command(one)


def run_task(task: Task, options: dict[str, Any]) -> None:
    """What the command does: `options` by the names of task_options.signature. Ends with an exit code."""
    from dmabench.cli.tasks_output import print_run, print_trials
    from dmabench.cli.tasks_run import measure

    given = _given(task, options)
    preset = _preset(options)
    if not (options["cell_timeout"] > 0 and math.isfinite(options["cell_timeout"])):
        raise Refusal(f"--cell-timeout {options['cell_timeout']:g}: write a number of seconds above 0")
    device = _device(options["device"], options["dry_run"])
    _check_jobs(options["jobs"])
    blocks = blocks_of(task, preset, given, device)
    trials = shard(make_trials(task, blocks), options["shard"])
    if options["dry_run"]:
        print_trials(task, trials, device, options["as_json"])
        return
    prepare(task, trials)
    run, interrupted = measure(task, trials, _settings(blocks, trials, preset, device, options), options)
    if run is None:  # one of several processes, and not the one that prints
        sys.exit(130 if interrupted else 0)
    place = {trial.id: number for number, trial in enumerate(trials)}
    rows = sorted((row for row in run.rows() if row["cell"] in place), key=lambda row: place[row["cell"]])
    about = task.presets[preset].about if preset else f"for a {'GPU' if device.startswith('cuda') else 'CPU'}"
    which = f"{f'preset {preset}' if preset else 'defaults'} ({about})"
    sys.exit(print_run(task, run, rows, which, options["as_json"], interrupted, cells=len(trials)))


def prepare(task: Task, trials: list[Trial]) -> None:
    """Makes what the cells share, and tells what a user should know of it.

    Raises:
        Refusal: it cannot be made.
    """
    if task.prepare is None:
        return
    from dmabench.cli.output import say

    first = here().first
    told: dict[str, None] = {}
    try:
        for trial in trials:
            if not trial.refusal and (note := task.prepare(trial.settings, say if first else lambda sentence: None)):
                told[note] = None
    except ValueError as error:
        raise Refusal(str(error)) from error
    for note in told if first else ():
        say(f"note: {note}", "yellow")


def _given(task: Task, options: dict[str, Any]) -> dict[str, str]:
    """The axes that were named, checked before anything else is done."""
    given = {axis.name: _joined(options[axis.name]) for axis in task.axes if options[axis.name] not in (None, [])}
    for axis in task.axes:
        if axis.name in given:
            values_of(axis, given[axis.name])
    count = options.get("seeds")
    if count is not None:
        if "seed" in given:
            raise Refusal(f"--seeds {count} means the seeds 0 to {count - 1}: leave out --seeds or --seed")
        if not 1 <= count <= 1000:
            raise Refusal(f"--seeds {count}: write how many, from 1 to 1000")
        given["seed"] = ",".join(map(str, range(count)))
    return given


def _joined(value: Any) -> Any:
    """Values of an option that was given several times are as if it had them all at once."""
    return ",".join(value) if isinstance(value, list) else value


def _preset(options: dict[str, Any]) -> str | None:
    preset: str | None = options["preset"]
    if options.get("quick") and preset not in (None, "quick"):
        raise Refusal(f"--quick is --preset quick; with --preset {preset} leave one of them out")
    return "quick" if options.get("quick") else preset


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise Refusal(f"--jobs {jobs}: write how many cells are trained at once, 1 or more")
    if jobs > 1 and here().count > 1:
        raise Refusal(
            f"--jobs {jobs} under torchrun: {here().count} processes train one cell together; leave out one of the two"
        )


def _device(wanted: str, dry_run: bool) -> str:
    from dmabench.cli.kernels_input import choose_device

    if dry_run and wanted == "cuda":
        return wanted  # what a GPU would have to do can be told without one
    return choose_device(wanted)


def _settings(
    blocks: Blocks, trials: list[Trial], preset: str | None, device: str, options: dict[str, Any]
) -> dict[str, Any]:
    """What a resumed run must have in common with this one."""
    return {
        "blocks": blocks,
        "seeds": seeds_of(trials),
        "preset": preset,
        "device": device,
        "shard": options["shard"],
        "deterministic": options["deterministic"],
        "compile": options["compile_"],
        "processes": here().count,
    }
