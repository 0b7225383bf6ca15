"""Counts by brute force and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.kernels import cost


@given(T=st.integers(1, 40), rows=st.floats(0, 1), w=st.one_of(st.none(), st.integers(1, 50)))
def test_kept_pairs_are_those_of_the_mask(T, rows, w):
    Tq = max(1, round(rows * T))
    window = T if w is None else w
    kept = sum(1 for i in range(T - Tq, T) for j in range(T) if j <= i and i - j < window)
    assert cost.kept_pairs(Tq, T, w) == kept
    dense = sum(i + 1 for i in range(T - Tq, T))
    assert cost.density(Tq, T, w) == pytest.approx(kept / dense)


def test_kept_pairs_by_the_formula_of_the_design():
    T, w = 131072, 2048
    assert cost.kept_pairs(T, T, w) == T * w - w * (w - 1) // 2
    assert 1 / cost.density(T, T, w) == pytest.approx(32.3, abs=0.05)
    assert 1 / cost.density(8192, 8192, 1024) == pytest.approx(4.3, abs=0.05)
    assert cost.density(100, 100, 100) == cost.density(100, 100, None) == 1.0


def test_flops_are_those_of_the_design():
    pairs = 16 * cost.kept_pairs(131072, 131072, 2048)
    assert cost.flops("fwd", pairs, 128) == pytest.approx(2.18e12, rel=5e-3)
    # One pair, head dim 10: q k^T and p v are 10 multiply-adds each.
    assert [cost.flops(what, 1, 10) for what in ("fwd", "bwd", "fwd+bwd")] == [40, 100, 140]


@pytest.mark.parametrize(
    ("biased", "forward", "backward"),
    [
        # B=2, H=6, G=3, Tq=5, Tk=7, D=4, 2 bytes: q 480 and k, v 2 x 336 bytes; lse 240; delta and evict 168 each.
        (False, 480 + 672 + 480 + 240, 480 + 672 + 480 + 480 + 240 + 480 + 672),
        (True, 480 + 672 + 480 + 240 + 336, 480 + 672 + 480 + 480 + 240 + 480 + 672 + 336 + 168),
    ],
)
def test_bytes_by_hand(biased, forward, backward):
    """Forward reads q, k, v, writes out and lse; backward reads q, k, v, out, dout and lse, writes dq, dk, dv."""
    shape = dict(batch=2, heads=6, kv_heads=3, query_len=5, key_len=7, head_dim=4, itemsize=2, biased=biased)
    assert cost.bytes_moved("fwd", **shape) == forward
    assert cost.bytes_moved("bwd", **shape) == backward
    assert cost.bytes_moved("fwd+bwd", **shape) == forward + backward


def test_an_unknown_pass_is_an_error():
    with pytest.raises(KeyError):
        cost.flops("sideways", 1, 1)
