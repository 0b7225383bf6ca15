"""The parent's side of the worker: one process measures, and its death costs one cell.

The parent makes no CUDA context. It sends a group of cells, reads rows back, and when the worker dies or hangs writes
the row of the cell that was running, starts another worker and goes on with the rest of the group.
"""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dmabench.cells import Cell
from dmabench.errors import Refusal
from dmabench.rows import failure

Message = dict[str, Any]

COMMAND = (sys.executable, "-P", "-m", "dmabench.worker")  # -P: the current folder is not importable


class Worker:
    """A measuring process that is restarted when needed. Use as a context manager."""

    def __init__(self, timeout_s: float, log: Path | None = None, command: Sequence[str] = COMMAND):
        """
        Args:
            timeout_s: longest silence, that is the longest one stage of one cell may take.
            log: file for what the worker prints (warnings, tracebacks of failing cells); default this process's stderr.
            command: what is started; it speaks as dmabench.worker does.
        """
        self.timeout_s, self.log, self.command = timeout_s, log, command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> "Worker":
        self._start()  # importing torch takes it seconds, in which the caller can prepare
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, hard; nothing it holds needs saving."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._lines = queue.Queue()
            with open(self.log, "ab") if self.log else nullcontext(_own_stderr()) as stderr:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches the parent alone, which then decides
                )
            threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # a worker may die halfway through an answer
                lines.put(line)
        lines.put(None)

    def measure(
        self, cells: list[Cell], options: dict[str, Any], began: Callable[[Cell, str], None]
    ) -> Iterator[Message]:
        """Rows of one group, `{"row": ..., "samples": ... or absent}`, as they are finished.

        Args:
            options: passed to the worker (see dmabench.worker.measure).
            began: told which cell starts which stage.

        Raises:
            Refusal: the worker found the input impossible.
        """
        left = {cell.id: cell for cell in cells}
        while left:
            process = self._start()
            assert process.stdin is not None
            request = {"cells": [cell.settings() for cell in left.values()], "options": options}
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it died already: the end of its output says so below
            running: str | None = None
            while True:
                try:
                    line = self._lines.get(timeout=self.timeout_s)
                except queue.Empty:
                    self.stop()
                    reason = f"no answer for {self.timeout_s:.0f} s; raise --cell-timeout if it is only slow"
                    yield from self._lost(left, running, "TIMEOUT", reason)
                    break
                if line is None:
                    yield from self._lost(left, running, *_death(process.wait()))
                    self._process = None
                    break
                message = json.loads(line)
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
                    left.clear()
                    break

    @staticmethod
    def _lost(left: dict[str, Cell], running: str | None, status: str, reason: str) -> Iterator[Message]:
        """The row of the cell that was running. Its row may be out already (the worker asked for a restart)."""
        if running is None:  # it cannot even start: every cell of the group shares that fate
            cells = list(left.values())
            left.clear()
        else:
            cells = [left.pop(running)] if running in left else []
        for cell in cells:
            yield {"event": "row", "row": failure(cell, status, reason)}


def _death(code: int) -> tuple[str, str]:
    """(status, reason) for a worker's exit code."""
    if code == -signal.SIGKILL:
        return "OUT_OF_MEMORY", "the system killed the worker, which it does when memory runs out"
    if code < 0:
        return "RUNTIME_ERROR", f"the worker died of {signal.Signals(-code).name}"
    return "RUNTIME_ERROR", f"the worker ended with exit code {code}"


def _own_stderr() -> int | None:
    """This process's stderr, where it has a real one (a test may have replaced it)."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None
