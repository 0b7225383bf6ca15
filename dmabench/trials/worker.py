"""`python -m dmabench.trials.worker`: trains and scores cells of tasks for a parent, so that a crash costs one cell.

Reads one JSON request a line on stdin: task, settings, device, folder, deterministic, compile, turnstile. Answers with
JSON lines on stdout: `begin`, `progress`, `alive` (while it waits for other workers), and `outcome` (status, reason,
rows). After a Ctrl-C the task saves its checkpoint and the process ends. Whatever else is printed goes to stderr.
"""

import gc
import json
import os
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dmabench.store.failures import context_is_lost, status_of
from dmabench.store.run_folder import plain
from dmabench.tasks import registry
from dmabench.tasks.task import Progress, Settings, Tools
from dmabench.timing.clock import make_clock
from dmabench.timing.rounds import interleave
from dmabench.timing.subjects import Timed
from dmabench.trials.cells import from_json
from dmabench.trials.turnstile import Turnstile

Outcome = dict[str, Any]
Call = Callable[[], Any]
TOLD_EVERY_S = 0.25
SAMPLING_S = 0.5
"""Seconds that timing one call may take, five samples at least: all other workers wait meanwhile."""


def attempt(task: str, settings: Settings, tools: Tools) -> Outcome:
    """One cell: {"status", "reason", "rows", "lost"}. `lost`: this process can do nothing more.

    Raises:
        KeyboardInterrupt: as the task does, after it has saved its checkpoint.
    """
    try:
        rows = registry.get(task).run(settings, tools)
        if not rows:
            raise RuntimeError(f"the task {task} returned no row")
        return {"status": "PASSED", "reason": None, "rows": plain(rows), "lost": False}
    except Exception as error:
        status, reason = status_of(error)
        return {"status": status, "reason": reason, "rows": [], "lost": context_is_lost(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def make_tools(request: dict[str, Any], told: Callable[[Progress], None], turnstile: Turnstile | None = None) -> Tools:
    """What a request lends to its task. The folder is made.

    Args:
        turnstile: gives way whenever the task tells its progress, and has the device to itself to time.
    """
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    if request["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    progress, time_ms = told, timer(request["device"])
    if turnstile is not None:
        progress, time_ms = _giving_way(turnstile, progress), _alone(turnstile, time_ms)
    return Tools(
        device=request["device"],
        folder=folder,
        progress=progress,
        time_ms=time_ms,
        deterministic=request["deterministic"],
        compile=request["compile"],
    )


def _giving_way(turnstile: Turnstile, told: Callable[[Progress], None]) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        turnstile.give_way()
        told(progress)

    return tell


def _alone(turnstile: Turnstile, time_ms: Callable[[Call], float]) -> Callable[[Call], float]:
    def time_alone(call: Call) -> float:
        with turnstile.alone():
            return time_ms(call)

    return time_alone


def timer(device: str) -> Callable[[Call], float]:
    """Median milliseconds of a call, from an idle device to its end there, as rows of `dmabench kernels` have them: L2
    flushed, warmed up, and the larger of device time and time with launches."""

    class Called(Timed):
        def __init__(self, call: Call):
            super().__init__()
            self.call_region = call  # type: ignore[method-assign]

    def failed(_: str, error: Exception) -> None:
        raise error

    def time_ms(call: Call) -> float:
        clock = make_clock(device)
        samples = interleave({"": Called(call)}, clock, SAMPLING_S, 0, lambda _: None, failed)[""]
        return max(statistics.median(taken) for taken in (samples.gpu_ms, samples.wall_ms) if taken)

    return time_ms


def _settle() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def rarely(told: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Tells each stage's beginning, and a few times a second how far it is."""
    stage, at = "", 0.0

    def tell(progress: Progress) -> None:
        nonlocal stage, at
        now = time.monotonic()
        if progress.stage != stage or now - at >= TOLD_EVERY_S:
            stage, at = progress.stage, now
            told(progress)

    return tell


def main() -> None:
    """Serve requests until stdin closes, or a Ctrl-C."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not mix with the answers
    warnings.filterwarnings("ignore")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts jobs in the background has them ignored
        signal.signal(number, signal.default_int_handler)

    def emit(message: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(message) + "\n")
            answers.flush()
        except BrokenPipeError:  # the parent is gone: save what there is, and go too
            raise KeyboardInterrupt from None

    told = rarely(lambda progress: emit({"event": "progress", **plain(asdict(progress))}))
    turnstile = None  # of one run: a worker serves no other
    try:
        for line in sys.stdin:
            request = json.loads(line)
            with suppress(Exception):  # a task that cannot be imported is told of as the outcome
                registry.get(request["task"])
            emit({"event": "begin"})
            if request["turnstile"] and turnstile is None:
                turnstile = Turnstile(Path(request["turnstile"]), lambda: emit({"event": "alive"}), _settle)
            with turnstile.inside() if turnstile else nullcontext():
                tools = make_tools(request, told, turnstile)
                outcome = attempt(request["task"], from_json(request["settings"]), tools)
            emit({"event": "outcome", **outcome})
    except KeyboardInterrupt:
        os._exit(130)  # at once: what mattered is on the disk, and threads of libraries must not keep this process


if __name__ == "__main__":
    main()
