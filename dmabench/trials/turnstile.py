"""Cells that are trained at once on one device, and one of them that wants it to itself for a while, to time something.

Two files with locks of the operating system (flock), which also lets go of those of a process that dies:

    room       shared by every process that runs a cell; exclusive: nobody else runs anything
    turnstile  who wants the room alone holds it first, and so keeps others from entering again

Nobody waits for one of the two while holding the room, so that several may want it alone without waiting for each other
for ever.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LOOK_S = 0.01
"""Seconds between looks at a lock that another process holds."""
ALIVE_S = 0.5
"""Seconds between two signs of life while waiting."""


class Turnstile:
    """One process's view of the locks in a folder that all processes of the run know."""

    def __init__(self, folder: Path, alive: Callable[[], None], settle: Callable[[], None]):
        """
        Args:
            folder: on this machine, and there already.
            alive: called now and then while waiting, since whoever says nothing for long is taken for dead.
            settle: waits until the device has done all that this process asked of it.
        """
        self.alive, self.settle = alive, settle
        # Locks belong to what was opened: kept open for the life of the process, and inherited by no program.
        self._turnstile, self._room = ((folder / name).open("ab") for name in ("turnstile", "room"))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While a cell runs. Waits first, if another process has the device to itself."""
        self._enter()
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)

    def give_way(self) -> None:
        """Waits while another process wants the device to itself. Costs microseconds where none does."""
        try:
            fcntl.flock(self._turnstile, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.settle()
            fcntl.flock(self._room, fcntl.LOCK_UN)
            self._enter()
        else:
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process runs anything: waits until each has given way. Inside only."""
        self.settle()
        fcntl.flock(self._room, fcntl.LOCK_UN)
        try:
            self._wait(self._turnstile, fcntl.LOCK_EX)
            self._wait(self._room, fcntl.LOCK_EX)
            yield
            self.settle()
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
            self._enter()

    def _enter(self) -> None:
        self._wait(self._turnstile, fcntl.LOCK_SH)
        fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        self._wait(self._room, fcntl.LOCK_SH)

    def _wait(self, file: BinaryIO, kind: int) -> None:
        told = time.monotonic()
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(LOOK_S)
            if time.monotonic() - told > ALIVE_S:
                told = time.monotonic()
                self.alive()
