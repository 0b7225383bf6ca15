"""Eviction times against the definition, on every kind of delta that has ties, trends, holes or infinities."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmabench.kernels.lifetimes import eviction_times, eviction_times_by_heap

KINDS = ("iid", "ties", "few", "constant", "rising", "falling", "zeros", "infinities", "nans", "only nans")


def by_definition(delta: Tensor, window: int, key_mask: Tensor | None = None) -> Tensor:
    """For every i, sort keys 0..i by (delta, position) and take the top `window`; evict is one past the last i."""
    B, G, T = delta.shape
    evict = torch.arange(T, dtype=torch.int32).repeat(B, G, 1)
    for b in range(B):
        for g in range(G):
            values = delta[b, g].tolist()
            usable = [not math.isnan(values[j]) and (key_mask is None or bool(key_mask[b, j])) for j in range(T)]
            for i in range(T):
                ranked = sorted(((values[j], j) for j in range(i + 1) if usable[j]), reverse=True)
                for _, j in ranked[:window]:
                    assert evict[b, g, j] in (i, j), "a key came back"
                    evict[b, g, j] = i + 1
    return evict


def _delta(kind: str, shape: tuple[int, int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    trend = torch.linspace(0, 4, shape[-1])

    def somewhere(share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    return {
        "iid": x,
        "ties": (x * 3).round() / 3,
        "few": x.sign(),
        "constant": torch.full(shape, 0.7),
        "rising": x + trend,
        "falling": x - trend,
        "zeros": torch.where(somewhere(0.5), torch.tensor(-0.0), torch.tensor(0.0)),
        "infinities": x.masked_fill(somewhere(0.3), torch.inf).masked_fill(somewhere(0.3), -torch.inf),
        "nans": ((x * 3).round() / 3).masked_fill(somewhere(0.3), torch.nan).masked_fill(somewhere(0.1), -torch.inf),
        "only nans": x.masked_fill(somewhere(0.95), torch.nan),
    }[kind]


def _mask(kind: str, B: int, T: int, seed: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(0, T + 1, (B, 1), generator=generator)
    position = torch.arange(T)
    return {
        "none": None,
        "right": position < length,
        "left": position >= length,
        "random": torch.rand(B, T, generator=generator) < 0.6,
        "nothing": torch.zeros(B, T, dtype=torch.bool),
    }[kind]


def _problems(longest: int):
    return {
        "B": st.integers(1, 2),
        "G": st.integers(1, 3),
        "T": st.integers(1, longest),
        "w": st.integers(1, longest + 5),
        "kind": st.sampled_from(KINDS),
        "padding": st.sampled_from(("none", "right", "left", "random", "nothing")),
        "double": st.booleans(),
        "seed": st.integers(0, 10**6),
    }


def _draw(B, G, T, w, kind, padding, double, seed):
    delta = _delta(kind, (B, G, T), seed)
    return (delta.double() if double else delta), min(w, T + 5), _mask(padding, B, T, seed)


@settings(max_examples=100)
@given(**_problems(60))
@example(1, 1, 1, 1, "iid", "none", False, 0)
@example(1, 2, 60, 60, "ties", "random", False, 0)
@example(1, 2, 60, 59, "zeros", "left", True, 0)
def test_both_ways_are_the_definition(B, G, T, w, kind, padding, double, seed):
    delta, window, key_mask = _draw(B, G, T, w, kind, padding, double, seed)
    expected = by_definition(delta, window, key_mask)
    assert torch.equal(eviction_times(delta, window, key_mask), expected)
    assert torch.equal(eviction_times_by_heap(delta, window, key_mask), expected)


@settings(max_examples=300)
@given(**_problems(200))
def test_tensor_operations_equal_the_heap(B, G, T, w, kind, padding, double, seed):
    delta, window, key_mask = _draw(B, G, T, w, kind, padding, double, seed)
    found = eviction_times(delta, window, key_mask)
    assert found.dtype == torch.int32 and found.shape == (B, G, T)
    assert torch.equal(found, eviction_times_by_heap(delta, window, key_mask))


@settings(max_examples=100)
@given(**_problems(200))
def test_every_row_keeps_as_many_keys_as_it_can(B, G, T, w, kind, padding, double, seed):
    delta, window, key_mask = _draw(B, G, T, w, kind, padding, double, seed)
    evict, position = eviction_times(delta, window, key_mask), torch.arange(T)
    assert bool((evict >= position).all()) and bool((evict <= T).all())
    usable = ~delta.isnan() & (True if key_mask is None else key_mask[:, None])
    assert torch.equal(evict[~usable].long(), position.expand(B, G, T)[~usable])  # never attended
    live = (position <= position[:, None]) & (position[:, None] < evict[:, :, None])
    assert torch.equal(live.sum(-1), usable.cumsum(-1).clamp(max=window))


@given(T=st.integers(1, 300), w=st.integers(1, 320), value=st.sampled_from((0.0, -0.0, 1.0, -3.5)))
def test_constant_delta_is_a_sliding_window(T, w, value):
    expected = (torch.arange(T, dtype=torch.int32) + w).clamp(max=T)
    assert torch.equal(eviction_times(torch.full((1, 1, T), value), w)[0, 0], expected)


def test_zeros_of_both_signs_tie():
    # Were -0.0 below +0.0, key 2 would be outranked by keys 0 and 1 at once.
    delta = torch.tensor([[[0.0, 0.0, -0.0, 0.0]]])
    assert eviction_times(delta, 2).tolist() == [[[2, 3, 4, 4]]]


def test_minus_infinity_is_attended_and_nan_is_not():
    delta = torch.tensor([[[-torch.inf, torch.nan, -torch.inf, torch.nan, -torch.nan]]])
    assert eviction_times(delta, 2).tolist() == [[[5, 1, 5, 3, 4]]]
    assert eviction_times(delta, 1).tolist() == [[[2, 1, 5, 3, 4]]]


def test_float64_ranks_what_float32_would_tie():
    delta = torch.tensor([[[1.0 + 1e-12, 1.0]]], dtype=torch.float64)
    assert eviction_times(delta, 1).tolist() == [[[2, 1]]]
    assert eviction_times(delta.float(), 1).tolist() == [[[1, 2]]]


@pytest.mark.parametrize("T", [255, 256, 257, 1023, 1024, 1025])
def test_around_powers_of_two(T):
    delta = torch.randn(1, 2, T, generator=torch.Generator().manual_seed(T))
    for window in (1, 2, T // 2, T - 1, T):
        assert torch.equal(eviction_times(delta, window), eviction_times_by_heap(delta, window))


def test_strided_delta_and_one_that_needs_a_gradient():
    base = torch.randn(2, 40, 3)
    delta = base.transpose(1, 2).requires_grad_()
    expected = eviction_times(delta.detach().contiguous(), 7)
    assert torch.equal(eviction_times(delta, 7), expected)
    shared = base[:1, :, :1].transpose(1, 2).expand(2, 3, 40)
    assert torch.equal(eviction_times(shared, 7), eviction_times(shared.contiguous(), 7))


def test_changes_no_input():
    delta = torch.tensor([[[-0.0, torch.nan, 1.0]]])
    key_mask = torch.tensor([[True, True, False]])
    kept = delta.clone()
    eviction_times(delta, 1, key_mask)
    assert torch.equal(delta.view(torch.int32), kept.view(torch.int32)) and key_mask.tolist() == [[True, True, False]]
