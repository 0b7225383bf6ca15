"""Sequences cut from a text: labels are the next tokens, each epoch has every sequence once, in an order of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.packed import Packed, shares


@given(
    seqlen=st.integers(1, 9),
    count=st.integers(1, 7),
    rest=st.integers(0, 8),
    size=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_labels_follow_and_an_epoch_has_every_sequence_once(seqlen, count, rest, size, seed):
    tokens = np.arange(seqlen * count + 1 + rest % seqlen, dtype=np.uint16)
    packed = Packed(tokens, seqlen, seed)
    assert packed.count == count
    steps = [packed.batch(step, size) for step in range(3 * count)]
    ids = torch.cat([ids for ids, _ in steps])
    assert ids.dtype == torch.int64 and steps[0][0].shape == (size, seqlen)
    assert all(torch.equal(labels, ids + 1) for ids, labels in steps)
    for epoch in range(3 * size):
        firsts = ids[epoch * count : (epoch + 1) * count, 0]
        assert sorted(firsts.tolist()) == [number * seqlen for number in range(count)]


def test_a_pure_function_of_the_step_and_the_seed():
    tokens = np.arange(1000, dtype=np.uint32)
    packed, other = Packed(tokens, 10, 3), Packed(tokens, 10, 4)
    late = packed.batch(17, 8)
    packed.batch(0, 8)
    assert all(map(torch.equal, packed.batch(17, 8), late))
    assert all(map(torch.equal, Packed(tokens, 10, 3).batch(17, 8), late))
    assert not torch.equal(other.batch(17, 8)[0], late[0])
    assert not torch.equal(packed.batch(0, 99)[0], packed.batch(1, 99)[0])


def test_text_shorter_than_a_sequence_is_refused():
    with pytest.raises(ValueError, match="10 tokens of training text are fewer than one sequence of 10 and the token"):
        Packed(np.arange(10), 10, 0)
    assert Packed(np.arange(11), 10, 0).count == 1


def test_stages_read_text_of_their_own_where_there_is_enough():
    tokens = np.arange(1000)
    first, second = shares(tokens, [600, 200])
    assert first.tolist() == list(range(750)) and second.tolist() == list(range(750, 1000))
    assert [len(part) for part in shares(tokens, [900, 100])] == [1000, 1000]
    assert [len(part) for part in shares(tokens, [5])] == [1000]
