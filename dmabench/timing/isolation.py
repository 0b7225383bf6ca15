"""Measuring kernels in a worker: its death costs one cell.

A group of cells goes out, rows come back, and when the worker dies or hangs the cell that was running gets the row,
another worker is started and does the rest of the group.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal
from dmabench.store.rows import failure
from dmabench.timing.worker_process import START_S, Lost, Message, WorkerProcess
from dmabench.workload.cells import Cell

COMMAND = (sys.executable, "-P", "-m", "dmabench.timing.worker")  # -P: the current folder is not importable


class Worker(WorkerProcess):
    """A measuring process; it speaks as dmabench.timing.worker does."""

    def __init__(self, timeout_s: float, log: Path | None = None, command: Sequence[str] = COMMAND):
        """
        Args:
            timeout_s: longest silence, that is the longest one stage of one cell may take; its start does not count.
            log: file for what the worker prints; default this process's stderr.
        """
        super().__init__(timeout_s, log, command)
        self._served: subprocess.Popen[str] | None = None

    def measure(
        self, cells: list[Cell], options: dict[str, Any], began: Callable[[Cell, str], None]
    ) -> Iterator[Message]:
        """Rows of one group, `{"row": ..., "samples": ... or absent}`, as they are finished.

        Args:
            options: passed to the worker (see dmabench.timing.worker.measure).
            began: told which cell starts which stage.

        Raises:
            Refusal: the worker found the input impossible.
        """
        left = {cell.id: cell for cell in cells}
        while left:
            self.send({"cells": [cell.settings() for cell in left.values()], "options": options})
            process = self._process
            running: str | None = None
            while True:
                try:
                    message = self.receive(START_S if running is None else 0.0)
                except Lost as lost:
                    # One that did an earlier group and is gone before this one began died of neither: another is asked.
                    if running is not None or process is not self._served:
                        yield from self._lost(left, running, lost)
                    break
                if message["event"] == "begin":
                    running = message["cell"]
                    if running in left:
                        began(left[running], message["stage"])
                elif message["event"] == "row":
                    left.pop(message["row"]["cell"], None)
                    yield message
                elif message["event"] == "refusal":
                    raise Refusal(message["reason"])
                elif message["event"] == "done":
                    self._served = process
                    left.clear()
                    break

    @staticmethod
    def _lost(left: dict[str, Cell], running: str | None, lost: Lost) -> Iterator[Message]:
        """The row of the cell that was running. Its row may be out already (the worker asked for a restart)."""
        if running is None:  # it cannot even start: every cell of the group shares that fate
            cells = list(left.values())
            left.clear()
        else:
            cells = [left.pop(running)] if running in left else []
        for cell in cells:
            yield {"event": "row", "row": failure(cell, lost.status, lost.reason)}
