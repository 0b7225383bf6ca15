"""Counts by brute force and by hand."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.kernels import cost
from dmabench.kernels.native_sparse import PAPER, Settings, settings_for


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


@given(
    T=st.integers(1, 150),
    rows=st.floats(0, 1),
    stride=st.integers(1, 4),
    length=st.integers(1, 3),
    block=st.integers(3, 5),
    count=st.integers(3, 6),
    window=st.integers(1, 200),
)
def test_sparse_pairs_are_those_that_are_read(T, rows, stride, length, block, count, window):
    settings = Settings(length * stride, stride, block * stride, count, window)
    Tq, size = max(1, round(rows * T)), settings.select_block
    compressed = selected = in_window = 0
    for i in range(T - Tq, T):
        compressed += sum(1 for c in range(T) if c * stride + settings.compress_block - 1 <= i)
        own = i // size
        blocks = [own, *range(own)][:count]  # whichever: its own and any earlier ones
        selected += sum(1 for c in blocks for j in range(c * size, (c + 1) * size) if j <= i)
        in_window += sum(1 for j in range(i + 1) if i - j < window)
    pairs = cost.sparse_pairs(Tq, T, **asdict(settings))
    assert pairs == (compressed, selected, in_window) and pairs.total == compressed + selected + in_window


def test_a_late_query_reads_what_the_settings_promise():
    for settings in (PAPER, settings_for(1024), settings_for(4096)):
        T = 1 << 16
        pairs = cost.sparse_pairs(1, T, **asdict(settings))
        assert pairs.selected + pairs.window == settings.token_keys()
        assert pairs.compressed == settings.compressed_len(T)


def test_latent_operations_and_bytes_by_hand():
    sizes = dict(batch=2, heads=3, query_len=1, key_len=10, latent=5, nope=4, rope=2, value=7)
    # 60 pairs; keys of 6 and values of 7; 20 tokens x 3 heads x 5 x (4 + 7) for the projections.
    assert cost.latent_flops("fwd", **sizes) == 2 * (60 * 13 + 3300)
    assert cost.latent_flops("bwd", **sizes) == 2 * (60 * (3 * 6 + 2 * 7) + 6600)
    assert cost.latent_flops("fwd+bwd", **sizes) == 2 * (60 * (4 * 6 + 3 * 7) + 9900)
    # Keys of 5 + 2 and values of 5; 2 queries x 3 heads x 5 x (4 + 7).
    assert cost.latent_flops("fwd", **sizes, absorbed=True) == 2 * (60 * 12 + 330)
    with pytest.raises(KeyError):
        cost.latent_flops("bwd", **sizes, absorbed=True)
    q, out, shared, lse = 2 * 3 * 6 * 2, 2 * 3 * 7 * 2, (20 * 7 + 3 * 5 * 11) * 2, 2 * 3 * 4
    assert cost.latent_bytes_moved("fwd", **sizes, itemsize=2) == q + out + shared + lse
    assert cost.latent_bytes_moved("bwd", **sizes, itemsize=2) == 2 * (q + out + shared) + lse


def test_expanded_latent_attention_is_dense_attention_and_two_projections():
    """With equal head dims the attention's own part is what `flops` counts."""
    sizes = dict(batch=1, heads=2, query_len=64, key_len=64, latent=8, nope=12, rope=4, value=16)
    for what, times in (("fwd", 1), ("bwd", 2), ("fwd+bwd", 3)):
        dense = cost.flops(what, 2 * cost.kept_pairs(64, 64, None), 16)
        assert cost.latent_flops(what, **sizes) == dense + times * 2 * (64 * 2 * 8 * 28)


def test_caches_by_hand():
    assert cost.cache_bytes(batch=3, kv_heads=8, rows=100, head_dim=128, itemsize=2) == 3 * 8 * 100 * 256 * 2
