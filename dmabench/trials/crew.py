"""Several workers that run cells at once on one device: a thread of the parent for each, and rows stored by one."""

import queue
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from dmabench.store.environment import cpu_cores
from dmabench.timing.worker_process import WorkerProcess
from dmabench.trials.cells import Trial

Outcome = dict[str, Any]
Ask = Callable[[Trial, WorkerProcess], Outcome]
Store = Callable[[Trial, Outcome, int], None]
LOOK_S = 0.2
"""Seconds between looks whether all have saved."""


def divided(environment: Mapping[str, str], jobs: int) -> dict[str, str]:
    """The environment of each of so many workers: threads of all together are no more than there are cores."""
    return {**environment, "OMP_NUM_THREADS": str(max(1, cpu_cores() // jobs))}


class Crew:
    """Workers, and the folder of the locks by which one has the device to itself. Use as a context manager."""

    def __init__(self, jobs: int, timeout_s: float, log: Path | None, command: Sequence[str], env: Mapping[str, str]):
        """
        Args:
            jobs: workers; the others as WorkerProcess has them.
        """
        self.workers = [WorkerProcess(timeout_s, log, command, divided(env, jobs)) for _ in range(jobs)]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # Not in the run's folder: locks on a disk of another machine are not to be relied on.
        self.turnstile = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dmabench-"))
        for worker in self.workers:
            self._stack.enter_context(worker)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, trials: Sequence[Trial], ask: Ask, store: Store) -> None:
        """Runs all cells, begun in their order. Those that run out of memory, which others had a part of, are run again
        by themselves when the others are done.

        Args:
            ask: has a worker run a cell; called in threads.
            store: takes an outcome and how many workers there were; called in this thread, in the order of finishing.

        Raises:
            KeyboardInterrupt: a Ctrl-C; the cells that were running have saved their checkpoints.
        """
        starved: list[Trial] = []

        def keep_or_store(trial: Trial, outcome: Outcome, jobs: int) -> None:
            if outcome["status"] == "OUT_OF_MEMORY" and jobs > 1:
                starved.append(trial)
            else:
                store(trial, outcome, jobs)

        self._run(self.workers, trials, ask, keep_or_store)
        if starved:
            places = {trial.id: number for number, trial in enumerate(trials)}
            self._run(self.workers[:1], sorted(starved, key=lambda trial: places[trial.id]), ask, store)

    def _run(self, workers: Sequence[WorkerProcess], trials: Sequence[Trial], ask: Ask, store: Store) -> None:
        left = deque(trials)
        done: queue.Queue[tuple[Trial, Outcome] | BaseException | None] = queue.Queue()
        ending = threading.Event()

        def work(worker: WorkerProcess) -> None:
            try:
                while left and not ending.is_set():
                    trial = left.popleft()
                    done.put((trial, ask(trial, worker)))
            except IndexError:  # another thread was faster
                pass
            except KeyboardInterrupt:  # broken off, and the checkpoint is saved
                pass
            except BaseException as error:
                done.put(error)
            finally:
                worker.stop()  # what it holds of the device's memory is for the others
                done.put(None)

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            working = len(threads)
            while working:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    working -= 1
                else:
                    store(*found, len(workers))
        except BaseException as error:
            ending.set()
            _break_off(workers, threads)
            if isinstance(error, KeyboardInterrupt):
                while not done.empty():
                    if isinstance(found := done.get(), tuple):  # it was finished before it heard of it
                        store(*found, len(workers))
            raise


def _break_off(workers: Sequence[WorkerProcess], threads: Sequence[threading.Thread]) -> None:
    """Waits until the workers have saved their checkpoints; another Ctrl-C ends them hard."""
    heard = False
    while not heard or any(thread.is_alive() for thread in threads):
        try:
            if not heard:
                heard = True
                for worker in workers:
                    worker.break_off()
            for thread in threads:
                if thread.is_alive():
                    thread.join(LOOK_S)
        except KeyboardInterrupt:
            heard = False
