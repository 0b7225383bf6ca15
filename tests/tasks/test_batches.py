"""Batches: every row goes to one part of one process, in order, and the thread ends with its reader."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.batches import AHEAD, Feed, Part, split, threads_for
from dmabench.tasks.recipe import Recipe


class Numbered:
    """Row b of step s holds s and b, with a label on its second token."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(step)
        ids = torch.stack([torch.full((size,), step), torch.arange(size)], 1)
        return ids, torch.stack([torch.full((size,), -100), torch.arange(size)], 1)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_rows_are_shared_out_once(world: int, accumulate: int, more: int) -> None:
    size = world * accumulate + more
    ids, labels = Numbered().batch(0, size)
    rows = []
    for rank in range(world):
        batch = split(ids, labels, 0, accumulate, rank, world)
        assert (batch.labels, batch.tokens, len(batch.parts)) == (size, 2 * size, accumulate)
        own = [row for part in batch.parts for row in part.input_ids[:, 1].tolist()]
        assert sorted(own) == list(range(rank, size, world))
        for part in batch.parts:
            assert torch.equal(part.input_ids.flatten()[part.index], part.targets)
            assert len(part.targets) == len(part.input_ids) > 0
        rows += own
    assert sorted(rows) == list(range(size))


def test_too_few_rows_and_no_labels_are_refused() -> None:
    ids, labels = Numbered().batch(0, 5)
    with pytest.raises(ValueError, match="at least 6"):
        split(ids, labels, 0, 3, 0, 2)
    with pytest.raises(ValueError, match="step 8 has a label"):
        split(ids, torch.full_like(ids, -100), 7, 1)


def test_steps_come_in_order_from_the_first() -> None:
    with Feed(Numbered(), Recipe(12, 2, 1e-3), 3, pin=False) as feed:
        batches = list(feed)
    assert [batch.step for batch in batches] == list(range(3, 12))
    assert all(int(batch.parts[0].input_ids[0, 0]) == batch.step for batch in batches)


def test_several_threads_make_the_same_batches_in_order() -> None:
    recipe = Recipe(40, 2, 1e-3)
    with (
        Feed(Numbered(), recipe, 0, pin=False) as one,
        Feed(Numbered(), recipe, 0, pin=False, threads=4, pad=True) as four,
    ):
        for first, second in zip(one, four, strict=True):
            assert first.step == second.step
            assert torch.equal(first.parts[0].input_ids, second.parts[0].input_ids)


def test_a_gpu_has_several_threads_where_examples_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    examples = Numbered()
    assert threads_for(examples, torch.device("cuda")) == 1
    examples.by_many = True
    assert threads_for(examples, torch.device("cuda")) == 6
    assert threads_for(examples, torch.device("cpu")) == 1


@given(st.integers(1, 9999))
def test_padded_labels_are_few_more_and_none(count: int) -> None:
    part = Part(torch.zeros(1, 4), torch.arange(count), torch.arange(count)).padded()
    assert count <= len(part.index) == len(part.targets) <= max(8, 1.25 * count)
    assert torch.equal(part.targets[:count], torch.arange(count))
    assert (part.targets[count:] == -100).all() and (part.index[count:] == 0).all()


def test_padded_counts_are_few() -> None:
    counts = {len(Part(torch.zeros(1), torch.arange(n), torch.arange(n)).padded().index) for n in range(4097, 8193)}
    assert counts == {5120, 6144, 7168, 8192}


def test_leaving_early_ends_the_thread() -> None:
    examples, before = Numbered(), threading.active_count()
    with Feed(examples, Recipe(10_000, 2, 1e-3), 0, pin=False) as feed:
        assert next(iter(feed)).step == 0
    assert threading.active_count() == before
    assert len(examples.asked) <= AHEAD + 4


def test_errors_reach_the_reader() -> None:
    class Broken(Numbered):
        def batch(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
            if step == 1:
                raise KeyError("no such example")
            return super().batch(step, size)

    with pytest.raises(KeyError, match="no such example"), Feed(Broken(), Recipe(9, 2, 1e-3), 0, pin=False) as feed:
        list(feed)
