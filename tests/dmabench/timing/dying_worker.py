"""A worker for tests: speaks as dmabench.timing.worker does, in its stages, measures nothing, starts fast, really dies.

A cell's backend says what becomes of it: `healthy-7`, or how and where it dies, such as `sigsegv-timing-7`.
"""

import json
import os
import signal
import sys
from typing import Any

from dmabench.store.rows import failure
from dmabench.workload.cells import Cell

DEATHS = {
    "sigsegv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sigabrt": os.abort,
    "exit": lambda: os._exit(3),
}


def emit(message: dict[str, Any], share: float = 1.0) -> None:
    line = json.dumps(message) + "\n"
    sys.stdout.write(line[: int(len(line) * share)])
    sys.stdout.flush()


def begin(cell: Cell, stage: str) -> None:
    emit({"event": "begin", "cell": cell.id, "stage": stage})
    die_if(cell, stage)


def die_if(cell: Cell, moment: str) -> None:
    how, *when = cell.backend.rsplit("-", 1)[0].split("-", 1)
    if when == [moment]:
        DEATHS[how]()


def measure(cells: list[Cell]) -> None:
    for cell in cells:
        begin(cell, "check")
    for taken in range(3):  # samples of all cells by turns
        for cell in cells:
            emit({"event": "begin", "cell": cell.id, "stage": "timing"})
            if taken == 1:
                die_if(cell, "timing")
    for cell in cells:
        begin(cell, "check after timing")
        answer = {"event": "row", "row": failure(cell, "PASSED", "measured by nobody")}
        if cell.backend.split("-")[1] == "answer":
            emit(answer, share=0.5)
            die_if(cell, "answer")
        emit(answer)


served: list[Cell] = []
for line in sys.stdin:
    for cell in served:
        die_if(cell, "asked again")
    served = [Cell.from_settings(cell) for cell in json.loads(line)["cells"]]
    measure(served)
    emit({"event": "done"})
