"""The options of a task's command, made from its axes."""

import inspect
from typing import Annotated, Any

import typer

from dmabench.tasks.task import Axis, Task
from dmabench.trials.cells import text
from dmabench.workload.axis_values import option

WHAT, HOW = "What to measure", "How"

HARNESS: dict[str, tuple[Any, Any, str, str]] = {
    # parameter: type, default, flag, help; the same for every task
    "device": (str, "auto", "--device", "cpu, cuda, or auto: cuda where there is one."),
    "results": (str | None, None, "--results", "Folder for runs (DMABENCH_RESULTS, else ./results)."),
    "resume": (str | None, None, "--resume", "Go on with a run: its folder, its name, or latest."),
    "shard": (str | None, None, "--shard", "This machine's part of the cells: 1/4 to 4/4, a run each."),
    "jobs": (int, 1, "--jobs", "Cells at once on the device: one trains while others wait for the host."),
    "cell_timeout": (float, 600.0, "--cell-timeout", "Seconds that a cell may go without any progress."),
    "deterministic": (bool, False, "--deterministic", "Bit-identical on a GPU too, and slower."),
    "compile_": (bool, False, "--compile", "Train with torch.compile."),
    "keep_models": (bool, False, "--keep-models", "Keep what each cell saved, in the run's folder."),
    "dry_run": (bool, False, "--dry-run", "Print the cells and what they take, and stop."),
    "as_json": (bool, False, "--json", "Print rows as JSON lines instead of tables."),
}
RESERVED = {flag for _, _, flag, _ in HARNESS.values()} | {"--seeds", "--preset", "--quick", "--help", "--debug"}


def signature(task: Task) -> inspect.Signature:
    """Parameters of the command: every axis, by its name, then those of the harness.

    An axis may be given several times: `--window 8 --window 16` is `--window 8,16`.

    Raises:
        ValueError: an axis is named like an option of the harness.
    """
    taken = sorted(option(axis) for axis in task.axes if option(axis) in RESERVED)
    if taken:
        raise ValueError(f"the task {task.name} names an axis {', '.join(taken)}, which every task has: rename it")
    parameters = [_axis(task, axis) for axis in task.axes]
    if any(axis.name == "seed" for axis in task.axes):
        parameters.append(_parameter("seeds", int | None, None, "--seeds", "So many seeds: 0, 1, 2 and on.", WHAT))
    about = f"{', '.join(task.presets)} (dmabench list presets)."
    parameters.append(_parameter("preset", str | None, None, "--preset", about, WHAT))
    if "quick" in task.presets:
        smallest = "The smallest honest run, the same as --preset quick."
        parameters.append(_parameter("quick", bool, False, "--quick", smallest, WHAT))
    parameters += [
        _parameter(name, kind, default, flag, told, HOW) for name, (kind, default, flag, told) in HARNESS.items()
    ]
    return inspect.Signature(parameters)


def _axis(task: Task, axis: Axis) -> inspect.Parameter:
    told = axis.help
    if axis.choices and not all(choice in told for choice in axis.choices):
        told = f"{told} {', '.join(axis.choices)}."
    told = f"{told} {_default(task, axis)}".strip()
    if axis.type is bool:
        return _parameter(axis.name, bool | None, None, f"{option(axis)}/--no-{option(axis)[2:]}", told, WHAT)
    return _parameter(axis.name, list[str] | None, None, option(axis), told, WHAT, "<str>")


def _default(task: Task, axis: Axis) -> str:
    """What the command alone does, on a CPU and on a GPU."""
    cpu, cuda = (text(task.defaults.get(device, {}).get(axis.name)) for device in ("cpu", "cuda"))
    if cpu == cuda:
        return f"Default {cpu}." if cpu else ""
    return f"Default {cpu or 'none'} on a CPU, {cuda or 'none'} on a GPU."


def _parameter(
    name: str, kind: Any, default: Any, flag: str, told: str, panel: str, metavar: str | None = None
) -> inspect.Parameter:
    info = typer.Option(flag, help=told, rich_help_panel=panel, show_default=False, metavar=metavar)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])
