"""Counting keys: expected counts by brute force, and every kind of mask the benchmark times."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.kernels import make_plan, reference
from dmabench.workload.membership import Lifetimes, sample_rows, wrong_rows


def _attention(birth, evict, scale):
    def attention(q, k, v, delta, plan):
        delta = torch.zeros(k.shape[:3]) if delta is None else delta
        shape = k.shape[:3]
        positions = torch.arange(k.shape[2])
        return reference.attend(q, k, v, delta, birth.expand(shape), evict.expand(shape), scale, positions)[0]

    return attention


@given(st.integers(1, 80), st.integers(1, 90), st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_the_right_mask_passes_and_one_flipped_pair_does_not(T, window, G, groups, backward):
    generator = torch.Generator().manual_seed(T * 1000 + window)
    delta = torch.randn(1, G, T, generator=generator)
    plan = make_plan(delta, window)
    mask = Lifetimes(plan.birth_BGT, plan.evict_BGT, window)
    q, k = torch.zeros(1, G * groups, T, 16), torch.zeros(1, G, T, 16)
    arguments = (q, k, True, plan, mask, 0.25, backward, 0)
    assert wrong_rows(_attention(plan.birth_BGT, plan.evict_BGT, 0.25), *arguments) is None
    evict = plan.evict_BGT.clone()
    last = evict[0, -1]
    changeable = ((last < T) | (last > torch.arange(T) + 1)).nonzero()
    if len(changeable) and T > 1:
        key = int(changeable[int(torch.randint(len(changeable), (), generator=generator))])
        last[key] += 1 if last[key] < T else -1
        assert wrong_rows(_attention(plan.birth_BGT, evict, 0.25), *arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [64, 3000])
def test_long_windows_are_counted_in_parts(dtype, window):
    """More keys than buckets can tell apart: several hashes look at a part of the keys each."""
    T = 3000
    birth = torch.arange(T, dtype=torch.int32)[None, None]
    evict = (birth + window).clamp(max=T)
    like = torch.zeros(1, 1, T, 16, dtype=dtype)
    mask = Lifetimes(birth, evict, window)
    assert wrong_rows(_attention(birth, evict, 0.25), like, like, False, None, mask, 0.25, True, 0) is None
    early = (evict - 1).where(evict < T, evict)
    wrong = wrong_rows(_attention(birth, early, 0.25), like, like, False, None, mask, 0.25, False, 0)
    assert wrong if window < T else wrong is None


def test_sampled_rows_hold_the_last_ones_and_those_beside_evictions():
    T = 5000
    plan = make_plan(torch.randn(1, 1, T, generator=torch.Generator().manual_seed(0)), 64)
    rows = sample_rows(Lifetimes(plan.birth_BGT, plan.evict_BGT, 64), 1000, seed=0)
    assert len(rows) <= 1250 and T - 1 in rows and bool((rows.diff() > 0).all())
    evictions = set(plan.evict_BGT[plan.evict_BGT < T].tolist())
    assert len(evictions & set(rows.tolist())) > 100
    assert torch.equal(sample_rows(Lifetimes(plan.birth_BGT, plan.evict_BGT, 64), T, 0), torch.arange(T))
