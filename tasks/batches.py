"""Batches made ahead in threads, so that the device does not wait for them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dmabench.tasks.recipe import Recipe
from dmabench.tasks.scoring import NO_LABEL, labelled
from dmabench.tasks.task import Examples

AHEAD = 4
"""Batches, and as many as there are threads."""
MOST_THREADS = 8


@dataclass(frozen=True)
class Part:
    """What goes through the model at once."""

    input_ids: Tensor
    """int64 [B, T]."""
    index: Tensor
    """int64 [N]: labelled positions in the flattened batch."""
    targets: Tensor
    """int64 [N]."""

    def to(self, device: torch.device) -> "Part":
        """On the device, without waiting."""
        return Part(*(x.to(device, non_blocking=True) for x in (self.input_ids, self.index, self.targets)))

    def padded(self) -> "Part":
        """With labels up to one of few counts, four to an octave, so that steps have few shapes: further ones stand at
        the first position and say that there is none (-100)."""
        count = len(self.index)
        more = -count % (1 << max(0, (count - 1).bit_length() - 3))
        return Part(self.input_ids, F.pad(self.index, (0, more)), F.pad(self.targets, (0, more), value=NO_LABEL))

    def pinned(self) -> "Part":
        """In memory that a GPU copies from while the host goes on."""
        return Part(*(x.pin_memory() for x in (self.input_ids, self.index, self.targets)))


@dataclass(frozen=True)
class Batch:
    """A step's examples, as one process sees them."""

    step: int
    parts: list[Part]
    """Of this process alone."""
    labels: int
    """Of all processes."""
    tokens: int
    """Of all processes."""


def split(input_ids: Tensor, labels: Tensor, step: int, accumulate: int, rank: int = 0, world: int = 1) -> Batch:
    """The share of process `rank`, rows rank, rank + world, ..., in `accumulate` parts.

    Raises:
        ValueError: fewer examples than parts, or no label.
    """
    if len(input_ids) < world * accumulate:
        raise ValueError(
            f"a batch of {len(input_ids)} examples cannot be split over {world} processes in {accumulate} parts each: "
            f"it must have at least {world * accumulate}"
        )
    count = int((labels != -100).sum())
    if not count:
        raise ValueError(f"no position of the {len(labels)} examples of step {step + 1} has a label")
    parts = []
    for number in range(accumulate):
        rows = slice(rank + number * world, None, world * accumulate)
        parts.append(Part(input_ids[rows], *labelled(labels[rows])))
    return Batch(step, parts, count, input_ids.numel())


def threads_for(examples: Examples, device: torch.device) -> int:
    """How many threads make batches: one beside a model on the CPU, several beside one on a GPU, which is faster than
    a thread that draws recall (4 to 13 ms for 32k tokens on one core), where the examples allow it."""
    if device.type != "cuda" or not getattr(examples, "by_many", False):
        return 1
    return max(1, min(MOST_THREADS, torch.get_num_threads()))


class Feed:
    """Iterates over the batches of the steps from `first` on. Use as a context manager: it ends the threads."""

    def __init__(
        self,
        examples: Examples,
        recipe: Recipe,
        first: int,
        pin: bool,
        rank: int = 0,
        world: int = 1,
        pad: bool = False,
        threads: int = 1,
    ):
        """
        Args:
            pin: in memory that a GPU copies from.
            pad: parts are `padded`.
            threads: that call `examples`; batches come in the order of their steps all the same.
        """
        self._examples, self._recipe, self._first, self._pin, self._pad = examples, recipe, first, pin, pad
        self._rank, self._world, self._threads = rank, world, threads

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="batches")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        steps = iter(range(self._first, self._recipe.steps))
        made: deque[Future[Batch]] = deque()
        for step in steps:
            made.append(self._pool.submit(self._make, step))
            if len(made) > AHEAD + self._threads:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()

    def _make(self, step: int) -> Batch:
        input_ids, labels = self._examples.batch(step, self._recipe.batch)
        batch = split(input_ids, labels, step, self._recipe.accumulate, self._rank, self._world)
        parts = batch.parts
        if self._pad:
            parts = [part.padded() for part in parts]
        if self._pin:
            parts = [part.pinned() for part in parts]
        return Batch(step, parts, batch.labels, batch.tokens)
