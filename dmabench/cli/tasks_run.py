"""From cells to a run: its folder, the worker or the processes that train, signals, and progress."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmabench.cli.tasks_progress import Shown
from dmabench.store import environment
from dmabench.store.runs import Run, find_run, results_root
from dmabench.tasks.task import Task
from dmabench.timing.worker_process import WorkerProcess
from dmabench.trials.cells import Trial
from dmabench.trials.crew import Crew
from dmabench.trials.ranks import Ranks, here
from dmabench.trials.run import COMMAND, ENVIRONMENT, Runner, in_process, in_worker, run_trials

PACKAGES = ("accelerate", "transformers")
"""What changes a result besides the packages of every run."""


def measure(
    task: Task, trials: list[Trial], settings: dict[str, Any], options: dict[str, Any]
) -> tuple[Run | None, bool]:
    """Runs the cells that a resumed run has not.

    Args:
        settings: what a resumed run must have in common with this one.
        options: of the command, by the names of task_options.

    Returns:
        the run (None in a process that does not write), and whether it was interrupted.
    """
    ranks, device = here(), settings["device"]
    found = environment.describe(PACKAGES)
    run, done = _open(task, settings, found, options, ranks)
    left = [trial for trial in trials if trial.id not in done]
    jobs = max(1, min(options["jobs"], len(left)))
    how = {"device": ranks.device(device), "deterministic": options["deterministic"]}
    how["compile"] = options["compile_"]
    name, keep = environment.device_name(found, device), options["keep_models"]
    try:
        with (
            _ending_as_ctrl_c(),
            Shown(task, trials, len(trials) - len(left), ranks.first, alone=jobs == 1) as shown,
            _runner(run.path, options, ranks, jobs) as runner,
        ):
            run_trials(left, run, runner, how, name, keep, ranks, shown.began, shown.ended, task.keeps)
    except BaseException as error:
        if ranks.first:
            run.finish("interrupted")
        if not isinstance(error, KeyboardInterrupt):
            raise
        return (run if ranks.first else None), True
    if ranks.first:
        run.finish("finished")
    return (run if ranks.first else None), False


def _open(
    task: Task, settings: dict[str, Any], found: dict[str, Any], options: dict[str, Any], ranks: Ranks
) -> tuple[Run, set[str]]:
    """The run, and the ids of the cells that it has already. The first process opens it and tells the others."""
    opened = []

    def make() -> tuple[str, list[str]]:
        root = results_root(options["results"])
        if options["resume"] is None:
            run = Run.start(root, task.name, sys.argv[1:], settings, found)
        else:
            run = Run.resume(find_run(root, options["resume"], _first(task)), task.name, settings, found)
        opened.append(run)
        return str(run.path), sorted(run.done())

    path, done = ranks.from_first(make, settings["device"])
    return (opened[0] if opened else Run(Path(path), {})), set(done)


def _first(task: Task) -> str:
    """The command that makes a run of the task, the smallest that it has."""
    return f"dmabench {task.name}{' --quick' * ('quick' in task.presets)}"


@contextmanager
def _ending_as_ctrl_c() -> Iterator[None]:
    """A scheduler's end of time and a lost connection are a Ctrl-C: checkpoints are saved, and --resume goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _runner(path: Path, options: dict[str, Any], ranks: Ranks, jobs: int) -> Iterator[Runner | Crew]:
    if ranks.count > 1:
        yield in_process
        return
    log = None if "--debug" in sys.argv else path / "worker.log"
    if jobs > 1:
        with Crew(jobs, options["cell_timeout"], log, COMMAND, ENVIRONMENT) as crew:
            yield crew
    else:
        with WorkerProcess(options["cell_timeout"], log, COMMAND, ENVIRONMENT) as worker:
            yield in_worker(worker)
