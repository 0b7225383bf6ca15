"""The parent's side of any worker: a process that is asked in JSON lines, answers in JSON lines, and may die.

The parent makes no CUDA context, so that nothing a worker does can take the run down.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

Message = dict[str, Any]
START_S = 300.0
"""How long a worker may take to start, to import what it needs and to begin: that is no part of what is asked of it."""
BROKEN_OFF = "broken off"
"""Stands among the lines of a worker, which all end in a newline."""


class Lost(Exception):
    """The worker died or fell silent; the next request starts another."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class WorkerProcess:
    """A process that is started when it is needed. Use as a context manager."""

    def __init__(
        self,
        timeout_s: float,
        log: Path | None,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ):
        """
        Args:
            timeout_s: longest silence.
            log: file for what the worker prints (warnings, tracebacks of failing cells); None: this process's stderr.
            command: what is started.
            environment: variables that it gets where they are not set.
        """
        self.timeout_s, self.log, self.command = timeout_s, log, command
        self.environment = environment or {}
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._broken_off = threading.Event()

    def __enter__(self) -> Self:
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

    def send(self, request: Message) -> None:
        """Asks for something, of a new process where there is none."""
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died already: the end of its output says so to `receive`

    def receive(self, least_s: float = 0.0) -> Message:
        """The next answer.

        Args:
            least_s: wait so long at least, whatever timeout_s says.

        Raises:
            Lost: there is none for timeout_s, or the process died.
            KeyboardInterrupt: a Ctrl-C, or another thread called break_off.
        """
        assert self._process is not None
        seconds = max(self.timeout_s, least_s)
        try:
            line = BROKEN_OFF if self._broken_off.is_set() else self._lines.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            reason = f"no answer for {seconds:.0f} s; raise --cell-timeout if it is only slow"
            raise Lost("TIMEOUT", reason) from None
        if line == BROKEN_OFF:
            raise KeyboardInterrupt
        if line is None:
            code = self._process.wait()
            self._process = None
            raise Lost(*_death(code))
        message: Message = json.loads(line)
        return message

    def break_off(self) -> None:
        """From another thread, since a Ctrl-C reaches the main thread alone: `receive` raises KeyboardInterrupt, in the
        middle of its waiting or when it is called. The second time, the process is ended hard."""
        if self._broken_off.is_set() and (process := self._process) is not None:
            process.kill()
        self._broken_off.set()
        self._lines.put(BROKEN_OFF)

    def interrupt(self, grace_s: float) -> None:
        """Passes a Ctrl-C on, and waits until the process has saved what it wants to and is gone; a second Ctrl-C, or
        grace_s seconds, end it hard."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + grace_s
            try:
                while self._process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
            except KeyboardInterrupt:
                pass
        self.stop()

    def _start(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._lines = queue.Queue()
            with open(self.log, "ab") if self.log else nullcontext(_own_stderr()) as stderr:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env={**self.environment, **os.environ},
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches the parent alone, which then decides
                )
            threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        return self._process

    @staticmethod
    def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # a worker may die halfway through an answer
                lines.put(line)
        lines.put(None)


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
