"""Batches made ahead in a thread, so that the device does not wait for them."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dmabench.tasks.recipe import Recipe
from dmabench.tasks.scoring import labelled
from dmabench.tasks.task import Examples

AHEAD = 4
"""Batches."""


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


class Feed:
    """Iterates over the batches of the steps from `first` on. Use as a context manager: it ends the thread."""

    def __init__(self, examples: Examples, recipe: Recipe, first: int, pin: bool, rank: int = 0, world: int = 1):
        self._examples, self._recipe, self._first, self._pin = examples, recipe, first, pin
        self._rank, self._world = rank, world
        self._made: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._make_all, name="batches", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):  # the thread may be waiting for a place in the queue
                self._made.get(timeout=0.01)
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        while (made := self._made.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made

    def _make_all(self) -> None:
        try:
            for step in range(self._first, self._recipe.steps):
                if self._ended.is_set():
                    return
                self._made.put(self._make(step))
            self._made.put(None)
        except BaseException as error:  # whatever it is, it belongs to the thread that trains
            self._made.put(error)

    def _make(self, step: int) -> Batch:
        input_ids, labels = self._examples.batch(step, self._recipe.batch)
        batch = split(input_ids, labels, step, self._recipe.accumulate, self._rank, self._world)
        if not self._pin:
            return batch
        return Batch(step, [part.pinned() for part in batch.parts], batch.labels, batch.tokens)
