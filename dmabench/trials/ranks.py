"""Processes that torchrun starts together: who writes, and how the others hear of it. torch only where there are
several."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    count: int
    local_rank: int

    @property
    def first(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """Where this process computes, when all together use `device`."""
        return f"cuda:{self.local_rank}" if device == "cuda" and self.count > 1 else device

    def from_first(self, make: Callable[[], Any], device: str) -> Any:
        """What `make` returns in the first process, in all of them. Where it raises, the others end with exit code 2.

        Args:
            device: "cpu" or "cuda": decides what the processes talk through.
        """
        if self.count == 1:
            return make()
        import torch
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        if device.startswith("cuda"):
            torch.cuda.set_device(self.local_rank)
        PartialState(cpu=not device.startswith("cuda"))  # makes the process group, once
        made, failed = None, None
        if self.first:
            try:
                made = make()
            except Exception as error:
                failed = error
        (said,) = broadcast_object_list([None if failed else (made,)])
        if failed:
            raise failed
        if said is None:
            self.wait_for_first()
            raise SystemExit(2)
        return said[0]

    def wait_for_first(self, seconds: float = 30) -> None:
        """Give the first process `seconds` to say why all of them end; returns at once in the first.

        torchrun ends every process as soon as one has failed: one that failed in silence, a moment before the first has
        said why, would leave nothing to read. Ended by that signal here, without a word of its own.
        """
        if not self.first:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(seconds)


def here() -> Ranks:
    """From the variables that torchrun sets; alone without them."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count == 1:
        return Ranks(0, 1, 0)
    return Ranks(int(os.environ.get("RANK") or 0), count, int(os.environ.get("LOCAL_RANK") or 0))
