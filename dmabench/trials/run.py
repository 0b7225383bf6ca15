"""Running the cells of a task: in a worker process, in several at once, or in this one where torchrun started several;
rows are stored as they come."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dmabench.store.runs import Run
from dmabench.tasks.task import Progress
from dmabench.timing.worker_process import START_S, Lost, WorkerProcess
from dmabench.trials.cells import Trial
from dmabench.trials.crew import Crew
from dmabench.trials.ranks import Ranks

COMMAND = (sys.executable, "-P", "-m", "dmabench.trials.worker")  # -P: the current folder is not importable
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait must not spin: on two CPU cores with other work, training was 15 times slower where they did."""
GRACE_S = 60.0
"""How long a worker may take to save its checkpoint after a Ctrl-C."""
CELLS = "cells"
"""The folder of a run in which cells keep their checkpoints."""

Row = dict[str, Any]
Outcome = dict[str, Any]
Told = Callable[[Progress], None]


class Runner(Protocol):
    """Something that runs one cell."""

    def __call__(self, request: dict[str, Any], told: Told) -> Outcome:
        """The outcome of dmabench.trials.worker.attempt; KeyboardInterrupt once its checkpoint is saved."""
        ...


def in_worker(worker: WorkerProcess) -> Runner:
    """Runs cells in a worker, whose death or silence costs the cell."""

    def run(request: dict[str, Any], told: Told) -> Outcome:
        try:
            worker.send(request)
            worker.receive(START_S)  # "begin": what a cell may take does not include the start of a process
            while True:
                message = worker.receive()
                event = message.pop("event")
                if event == "progress":
                    told(Progress(**message))
                elif event == "outcome":  # else it is alive, and waits for another worker
                    if message["lost"]:
                        worker.stop()  # the next cell gets a fresh one
                    return message
        except Lost as lost:
            return {"status": lost.status, "reason": lost.reason, "rows": []}
        except KeyboardInterrupt:
            worker.interrupt(GRACE_S)
            raise

    return run


def in_process(request: dict[str, Any], told: Told) -> Outcome:
    """Runs a cell in this process, one of several that train it together."""
    from dmabench.trials.worker import attempt, make_tools

    return attempt(request["task"], request["settings"], make_tools(request, told))


def run_trials(
    trials: list[Trial],
    run: Run,
    runner: Runner | Crew,
    how: dict[str, Any],
    device_name: str,
    keep_models: bool,
    ranks: Ranks,
    began: Callable[[Trial], Told],
    ended: Callable[[Trial, list[Row]], None],
    kept: tuple[str, ...] = (),
) -> None:
    """Runs the cells that have no rows yet and stores the rows of each when it is finished.

    Args:
        runner: one cell after the other, or several at once.
        how: device, deterministic and compile, as a worker is told them.
        device_name: for the rows.
        keep_models: leave the folder of each cell, with what the task saved in it.
        began: told of each cell that starts; returns who is told of its progress. Both are called in the threads of a
            crew.
        ended: told of each cell's rows.
        kept: names in the folder of a cell that stay in any case, once its rows are stored.

    Raises:
        KeyboardInterrupt: a Ctrl-C; what was running has saved its checkpoint.
    """

    turnstile = runner.turnstile if isinstance(runner, Crew) else None

    def ask(trial: Trial, one: Runner) -> Outcome:
        told = began(trial)
        if trial.refusal:
            return {"status": "UNSUPPORTED", "reason": trial.refusal, "rows": []}
        request = {"task": trial.task, "settings": trial.settings, "folder": str(_folder(run, trial))}
        outcome = one({**request, **how, "turnstile": turnstile}, told)
        if outcome["status"] == "OUT_OF_MEMORY":
            told(Progress("out of memory", 0, 0))  # a crew runs it again later
        return outcome

    def store(trial: Trial, outcome: Outcome, jobs: int) -> None:
        rows = rows_of(trial, outcome, device_name, ranks.count, jobs)
        if ranks.first:
            rows = [run.append(row) for row in rows]
            if not keep_models:
                _remove(_folder(run, trial), kept if outcome["status"] == "PASSED" else ())
        ended(trial, rows)

    if isinstance(runner, Crew):
        runner.run(trials, lambda trial, worker: ask(trial, in_worker(worker)), store)
    else:
        for trial in trials:
            outcome = ask(trial, runner)
            store(trial, outcome, 1)
            if ranks.count > 1 and outcome["status"] not in ("PASSED", "UNSUPPORTED"):
                # The others may be anywhere in the cell: none of them can be asked for another.
                raise SystemExit(f"dmabench: {outcome['status']} in process {ranks.rank}: {outcome['reason']}")
    if ranks.first and (run.path / CELLS).is_dir() and not any((run.path / CELLS).iterdir()):
        (run.path / CELLS).rmdir()


def rows_of(trial: Trial, outcome: Outcome, device_name: str, processes: int = 1, jobs: int = 1) -> list[Row]:
    """The rows to be stored: each of the task's, or one that says why there is none.

    Args:
        processes: trained this cell together.
        jobs: cells, this one among them, that may have shared the device: speeds of training are of no use above 1.
    """
    found = outcome["rows"] or [{}]
    head = {"task": trial.task, "cell": trial.id, "cell_number": trial.number}
    about = {"status": outcome["status"], "reason": outcome["reason"], "device": device_name}
    about |= {"processes": processes, "jobs": jobs}
    return [
        {**head, "part": number, "parts": len(found), **about, **trial.settings, **row}
        for number, row in enumerate(found, start=1)
    ]


def _folder(run: Run, trial: Trial) -> Path:
    return run.path / CELLS / trial.id


def _remove(folder: Path, kept: tuple[str, ...]) -> None:
    """Checkpoints of a cell whose rows are stored: nobody needs them, and nothing is lost where they cannot go."""
    if not any((folder / name).exists() for name in kept):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
