"""The states that decoding keeps, against plain lists of what they should hold."""

import pytest
import torch

from dmabench.tasks.cache import Growing, LayerCache, ModelCache, Ring, Tail, WholeTail


def counted(start, n, rows=2):
    """[rows, 1, n, 1]: row * 1000 + position."""
    return (torch.arange(start, start + n) + 1000 * torch.arange(rows)[:, None])[:, None, :, None].double()


CALLS = [[1], [3, 1, 1], [7, 1, 9, 2, 1], [1] * 12, [20, 1, 5]]


@pytest.mark.parametrize("calls", CALLS)
def test_growing_keeps_everything(calls):
    state, start = Growing(), 0
    for n in calls:
        k, v = state.append(counted(start, n), -counted(start, n))
        start += n
        assert state.seen == start
        assert torch.equal(k, counted(0, start)) and torch.equal(v, -counted(0, start))
    state.crop(start - 1)
    k, _ = state.append(counted(start - 1, 2), counted(start - 1, 2))
    assert torch.equal(k, counted(0, start + 1))


def test_growing_copies_seldom():
    state, copies, held = Growing(), 0, None
    for position in range(5000):
        state.append(counted(position, 1))
        copies += held is not None and state.held[0] is not held
        held = state.held[0]
    assert copies < 25


@pytest.mark.parametrize("window", [1, 2, 5, 30])
@pytest.mark.parametrize("calls", CALLS)
def test_a_ring_keeps_the_last(calls, window):
    state, start = Ring(window), 0
    for n in calls:
        state.append(counted(start, n), -counted(start, n))
        start += n
        kept = min(start, window)
        k, v = state.in_order()
        assert torch.equal(k, counted(start - kept, kept)) and torch.equal(v, -k)
        assert torch.equal(state.held[0][0, 0, : len(state.positions()), 0], state.positions().double())
        assert state.held[0].shape[2] == window


@pytest.mark.parametrize("kind", [Tail, WholeTail])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_tail_has_the_last_or_zeros(kind, count):
    state, seen = kind(count), []
    for start, n in ((0, 1), (1, 1), (2, 5), (7, 1)):
        state.append(counted(start, n)[:, 0])
        seen += range(start, start + n)
        for row, base in enumerate((0, 1000)):
            expected = [*[0] * count, *[base + position for position in seen]][len(seen) :]
            assert state.last(count)[row, :, 0].tolist() == expected


def test_rows_move_together():
    state = Growing()
    state.append(counted(0, 4, rows=3))
    cache = ModelCache([LayerCache(state)])
    cache.mask_BT = torch.tensor([[True] * 4, [False] + [True] * 3, [True] * 4])
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    assert state.held[0][:, 0, 0, 0].tolist() == [1000, 1000, 0]
    assert cache.mask_BT[:, 0].tolist() == [False, False, True]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 5]))
    assert state.held[0][:, 0, 0, 0].tolist() == [1000, 0]
    assert cache.mask_BT[:, 0].tolist() == [False, True]
    cache.crop(-1)
    assert cache.get_seq_length() == 3 and cache.mask_BT.shape == (2, 3)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(2)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.mask_BT is None and cache.nbytes == 0
