"""Facts of masks: equal to counting pair by pair, and known values for known masks."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmabench.kernels import make_plan
from dmabench.kernels.lifetimes import eviction_times
from dmabench.kernels.mask_facts import (
    BLOCK_K,
    BLOCK_Q,
    LEVELS,
    head_facts,
    head_overlaps,
    keys_by_block,
    median_ages,
    quantile,
    tied_share,
)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(2, 40), st.integers(0, 99))
def test_ages_and_overlaps_are_those_of_all_pairs(window, n, seed):
    torch.manual_seed(seed)
    evict = eviction_times(torch.randn(2, 3, 50), window)
    ages = [
        [i - j for b in range(2) for i in range(n // 2, n) for j in range(i + 1) if evict[b, g, j] > i]
        for g in range(3)
    ]
    assert median_ages(evict, n) == [statistics.median_low(one) for one in ages]
    if n - n // 2 <= 32:  # so few that every query is looked at
        live = {
            (b, g, i): {j for j in range(i + 1) if evict[b, g, j] > i}
            for b in range(2)
            for g in range(3)
            for i in range(n // 2, n)
        }
        pairs = [
            len(live[b, 0, i] & live[b, g, i]) / len(live[b, 0, i] | live[b, g, i])
            for g in (1, 2)
            for b in range(2)
            for i in range(n // 2, n)
        ]
        assert head_overlaps(evict, n)[0] == pytest.approx(statistics.fmean(pairs), abs=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 300), st.integers(1, 700), st.sampled_from(["iid", "ties", "rising"]), st.integers(0, 99))
def test_facts_are_those_of_the_whole_mask(window, T, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(2, T, generator=generator)
    if kind == "ties":
        delta = delta.round()
    elif kind == "rising":
        delta = delta + torch.linspace(0, 9, T)
    evict = eviction_times(delta[None], window)[0]
    i = torch.arange(T)
    mask = (i <= i[:, None]) & (evict[:, None, :] > i[:, None])  # [G, query, key]
    blocks, tiles = -(-T // BLOCK_Q), -(-T // BLOCK_K)
    padded = torch.nn.functional.pad(mask, (0, tiles * BLOCK_K - T, 0, blocks * BLOCK_Q - T))
    by_tile = padded.unflatten(2, (tiles, BLOCK_K)).unflatten(1, (blocks, BLOCK_Q)).any(-1).any(2)
    causal = torch.tril(torch.ones(T, T, dtype=torch.bool))
    dense = torch.nn.functional.pad(causal, (0, tiles * BLOCK_K - T, 0, blocks * BLOCK_Q - T))
    dense = dense.unflatten(1, (tiles, BLOCK_K)).unflatten(0, (blocks, BLOCK_Q)).any(-1).any(1)
    seen = padded.unflatten(1, (blocks, BLOCK_Q)).any(2).sum(-1)
    assert torch.equal(keys_by_block(evict, BLOCK_Q), seen)
    for head, facts in enumerate(head_facts(delta, window)):
        lifetimes = sorted(int(n) for n in mask[head].sum(0) if n)
        assert facts.live_keys == len(lifetimes)
        assert facts.density == pytest.approx(mask[head].sum().item() / causal.sum().item())
        assert facts.alive == int(mask[head, -1].sum()) == min(window, T)
        assert facts.lifetimes == tuple(lifetimes[round(level * (len(lifetimes) - 1))] for level in LEVELS)
        values = delta[head].tolist()
        assert facts.ties == pytest.approx(sum(values.count(one) > 1 for one in values) / T)
        assert facts.tiles_dense == int(dense.sum()) and facts.tiles_in_order == int(by_tile[head].sum())
        assert facts.tiles_gathered == int((-(-seen[head] // BLOCK_K)).sum())
        assert facts.age == median_ages(evict[None], T)[head]


def test_the_reorder_touches_as_many_tiles_as_the_plan_of_the_kernels():
    delta = torch.randn(1, 2048, generator=torch.Generator().manual_seed(0))
    (facts,) = head_facts(delta, 128)
    plan = make_plan(delta[None], 128)
    assert plan.gathers
    assert facts.tiles_reordered * BLOCK_Q * BLOCK_K == int(plan.tiles(BLOCK_Q, BLOCK_K).executed_pairs())
    assert facts.tiles_gathered * BLOCK_Q * BLOCK_K == int(plan.key_lists().executed_pairs(BLOCK_K))
    assert facts.tiles_gathered < facts.tiles_reordered < facts.tiles_in_order < facts.tiles_dense


def test_a_sliding_window():
    facts, again = head_facts(torch.zeros(2, 1024), 100)
    assert facts == again and facts.ties == 1.0 and facts.overlap == 1.0 and facts.live_keys == 1024
    assert quantile(facts.lifetimes, 0.5) == quantile(facts.lifetimes, 1.0) == 100 and facts.age == 49
    assert head_facts(torch.zeros(1, 8), 100)[0].overlap is None


def test_ties_and_what_is_refused():
    assert tied_share(torch.tensor([0.0, -0.0, 1.0, 2.0])) == 0.5
    with pytest.raises(ValueError, match="NaN or infinite"):
        head_facts(torch.tensor([[1.0, torch.inf]]), 1)
