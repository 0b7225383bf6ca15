"""Interleaved timing: all cells of a shape take turns in shuffled rounds, so that drift hits them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dmabench.timing.clock import CpuClock, CudaClock
from dmabench.timing.subjects import Timed

STEADY = 0.005
"""Relative spread (standard deviation over mean) below which more samples would tell nothing."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 25
LEAST_SAMPLES = 5
SLOW_S = 1.0
"""A call that takes longer is not repeated to warm up: what is cold costs milliseconds."""


@dataclass
class Samples:
    """Milliseconds, sample by sample."""

    gpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    turns: list[int] = field(default_factory=list)
    """How many samples each turn took: those of one turn resemble each other more than those of different turns."""
    stopped: str = "cap"
    """Why sampling ended: "steady", "spread is stable" or "cap"."""
    spent_s: float = 0.0
    _spreads: list[float] = field(default_factory=list)

    @property
    def main(self) -> list[float]:
        """The samples whose spread decides: device time where there is one."""
        return self.gpu_ms or self.wall_ms

    def enough(self, cap_s: float) -> bool:
        """Called after each round."""
        values = self.main
        if len(values) < LEAST_SAMPLES:
            return False
        spread = statistics.stdev(values) / statistics.mean(values)
        self._spreads.append(spread)
        if len(self._spreads) >= LEAST_ROUNDS:
            if spread < STEADY:
                self.stopped = "steady"
                return True
            before = self._spreads[-LEAST_ROUNDS:]
            if max(before) - min(before) < 0.05 * spread:
                self.stopped = "spread is stable"
                return True
        return self.spent_s >= cap_s or len(self._spreads) >= MOST_ROUNDS


def interleave(
    subjects: Mapping[str, Timed],
    clock: CpuClock | CudaClock,
    cap_s: float,
    seed: int,
    begin: Callable[[str], None],
    failed: Callable[[str, Exception], None],
) -> dict[str, Samples]:
    """Time every subject until it is steady or has used `cap_s` seconds.

    Args:
        begin: called with a cell's id before it runs, so that a crash can be laid at its door.
        failed: called when a subject raises; it takes no further part.

    Returns:
        samples by cell id, of those that did not fail.
    """
    samples = {cell: Samples() for cell in subjects}
    running = list(subjects)
    shuffle = random.Random(seed)
    while running:
        shuffle.shuffle(running)
        for cell in list(running):
            begin(cell)
            start = time.perf_counter()
            try:
                _one_turn(subjects[cell], samples[cell], clock, cap_s / 8)
            except Exception as error:
                failed(cell, error)
                running.remove(cell)
                del samples[cell]
                continue
            finally:
                subjects[cell].release()
            samples[cell].spent_s += time.perf_counter() - start
            if samples[cell].enough(cap_s):
                running.remove(cell)
    return samples


def _one_turn(subject: Timed, samples: Samples, clock: CpuClock | CudaClock, turn_s: float) -> None:
    """Warm calls, then samples of the region and of its parts for about `turn_s` seconds, one at least."""
    subject.ready()
    slow = bool(samples.main) and samples.main[-1] > 1e3 * SLOW_S
    if not slow:
        start = time.perf_counter()
        subject.region()
        clock.synchronize()
        slow = time.perf_counter() - start > SLOW_S
    until = time.perf_counter() + turn_s
    before = len(samples.main)
    calls: dict[str, Callable[[], Any]] = {"": subject.region, **subject.parts()}
    if not slow:
        for call in calls.values():
            call()
        clock.synchronize()
    launch_s = {name: _launch_s(call, clock) for name, call in calls.items()}
    while True:
        for name, call in calls.items():
            if isinstance(clock, CudaClock):
                gpu = clock.gpu_ms(call, launch_s[name])
                if name:
                    samples.parts.setdefault(name, []).append(gpu)
                else:
                    samples.gpu_ms.append(gpu)
                    samples.wall_ms.append(clock.wall_ms(call))
            else:
                wall = clock.wall_ms(call)
                (samples.parts.setdefault(name, []) if name else samples.wall_ms).append(wall)
        if time.perf_counter() >= until:
            samples.turns.append(len(samples.main) - before)
            return


def _launch_s(call: Callable[[], Any], clock: CpuClock | CudaClock) -> float:
    """Host seconds to launch the call; on a GPU it returns before the device is done."""
    if not isinstance(clock, CudaClock):
        return 0.0
    start = time.perf_counter()
    call()
    launched = time.perf_counter() - start
    clock.synchronize()
    return launched
