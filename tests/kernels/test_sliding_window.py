"""The sliding window: its tile lists against brute force, FlexAttention on a CPU against the reference."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmabench.kernels import Problem, dynamic_mask_attention, flex, registry
from dmabench.kernels.sliding_window import window_lists


def _expected(q, k, v, window, scale):
    return dynamic_mask_attention(q, k, v, torch.zeros(k.shape[:3]), window, scale=scale, backend="reference")


@settings(max_examples=40)
@given(T=st.integers(1, 700), w=st.integers(1, 750), backward=st.booleans())
@example(T=128, w=128, backward=True)
@example(T=129, w=1, backward=True)
@example(T=640, w=255, backward=True)
@example(T=640, w=256, backward=True)
@example(T=640, w=257, backward=True)
@example(T=600, w=10**9, backward=False)
def test_lists_are_the_window(T, w, backward):
    birth, evict, lists = window_lists(T, w, backward, torch.device("cpu"))
    block = flex.BLOCK
    back = torch.arange(T)[:, None] - torch.arange(T)
    live = (back >= 0) & (back < w)  # [query, key]
    i = torch.arange(T)[:, None]
    assert birth.shape == evict.shape == (1, 1, T)
    assert torch.equal((birth[0, 0] <= i) & (i < evict[0, 0]), live)
    blocks = -(-T // block)
    partial, full = [set() for _ in range(blocks)], [set() for _ in range(blocks)]
    for m in range(blocks):
        for n in range(blocks):
            tile = live[m * block : (m + 1) * block, n * block : (n + 1) * block]
            if tile.all() and tile.shape[1] == block:
                full[m].add(n)
            elif tile.any():
                partial[m].add(n)
    assert _sets(lists.kv_count, lists.kv_index) == partial
    assert _sets(lists.full_kv_count, lists.full_kv_index) == full
    if not backward:
        assert lists.q_count is None and lists.full_q_count is None
        return
    assert _sets(lists.q_count, lists.q_index) == _turned(partial)
    assert _sets(lists.full_q_count, lists.full_q_index) == _turned(full)


def _sets(count, index):
    rows = [index[0, 0, m, : count[0, 0, m]].tolist() for m in range(count.shape[-1])]
    assert all(len(set(row)) == len(row) for row in rows)
    return [set(row) for row in rows]


def _turned(rows):
    return [{m for m, row in enumerate(rows) if n in row} for n in range(len(rows))]


def test_lists_are_kept_for_the_next_call():
    device = torch.device("cpu")
    assert window_lists(300, 40, False, device) is window_lists(300, 40, False, device)


@pytest.mark.parametrize("w", [1, 70, 300])
def test_flex_forward(compiler, inputs, close, w):
    q, k, v, _ = inputs(2, 4, 2, 300, 300, 32)  # one shape: it compiles once, and dense/flex shares it
    close(registry.get("swa/flex").attend(q, k, v, window=w, scale=0.2), _expected(q, k, v, w, 0.2))


def test_flex_backward_is_exact(eager_flex, inputs, grads, close):
    leaves = inputs(1, 4, 2, 200, 200, 16, torch.float64, grad=True)[:3]
    out = registry.get("swa/flex").attend(*leaves, window=30, scale=0.2)
    expected = _expected(*leaves, 30, 0.2)
    close(out, expected)
    for found, right in zip(grads(out, leaves), grads(expected, leaves), strict=True):
        close(found, right)


def _problem(**changes) -> Problem:
    given = dict(device="cuda", dtype=torch.bfloat16, batch=1, heads=4, kv_heads=2, query_len=64, key_len=64)
    return Problem(**{**given, "head_dim": 64, "window": 9, "backward": False, **changes})


def test_fewer_queries_than_keys_are_refused_or_right(inputs, close):
    """The tile lists are for as many queries as keys: with fewer they would silently belong to other rows."""
    backend = registry.get("swa/flex")
    problem = _problem(device="cpu", dtype=torch.float32, query_len=200, key_len=300, head_dim=32, window=40)
    if backend.refusal(problem) is None:
        q, k, v, _ = inputs(1, 4, 2, 200, 300, 32)
        close(backend.attend(q, k, v, window=40, scale=0.2), _expected(q, k, v, 40, 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("H", "G", "T", "w"), [(4, 2, 100, 30), (2, 2, 100, 100), (8, 1, 20, 99), (4, 2, 50, 1)])
def test_decoding_reads_the_last_keys(inputs, close, H, G, T, w, dtype):
    """Also where they are all there is: a cache that holds only the window."""
    backend = registry.get("swa/sdpa")
    q, k, v, _ = inputs(2, H, G, 1, T, 32, dtype)
    expected = _expected(*(x.double() for x in (q, k, v)), w, 0.2)
    close(backend.attend(q, k, v, window=w, scale=0.2), expected)
    kept = max(0, T - w)
    k[:, :, :kept], v[:, :, :kept] = torch.nan, torch.nan
    close(backend.attend(q, k, v, window=w, scale=0.2), expected)
    close(backend.attend(q, k[:, :, kept:], v[:, :, kept:], window=w, scale=0.2), expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("varlen-flash", {"device": "cpu"}, "FlashAttention for packed sequences needs a CUDA device"),
        ("varlen-flash", {"dtype": torch.float32}, "FlashAttention takes fp16 and bf16, not float32"),
        ("varlen-flash", {"query_len": 32}, "swa/varlen-flash needs as many queries as keys"),
        ("sdpa", {}, "swa/sdpa takes one query, to decode"),
        ("flex", {"dtype": torch.float64}, "FlexAttention has no float64"),
        ("flex", {"device": "cpu", "backward": True}, "FlexAttention has no backward on a CPU"),
    ],
)
def test_refusals_say_why(name, changes, message):
    assert message in (registry.get(f"swa/{name}").refusal(_problem(**changes)) or "")


@pytest.mark.parametrize(("H", "G", "w"), [(4, 2, 9), (2, 2, 9), (4, 1, 100)])
def test_varlen_packs_sequences_and_spreads_grouped_heads(monkeypatch, inputs, close, H, G, w):
    """A stand-in for torch's entry, with its layout and its window: keys behind, keys ahead."""
    import torch.nn.attention.varlen as varlen

    def varlen_attn(q, k, v, starts_q, starts_k, longest_q, longest_k, *, scale, window_size):
        assert q.shape == k.shape == v.shape == (60, H, 16) and q.shape[0] == int(starts_q[-1])
        assert starts_q.dtype == torch.int32 and torch.equal(starts_q, starts_k) and longest_q == longest_k == 20
        behind, ahead = window_size
        assert ahead == 0 and behind < 20
        rows = [x.unflatten(0, (3, 20)).transpose(1, 2) for x in (q, k, v)]
        return _expected(*rows, behind + 1, scale).transpose(1, 2).flatten(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    q, k, v, _ = inputs(3, H, G, 20, 20, 16)
    found = registry.get("swa/varlen-flash").attend(q, k, v, window=w, scale=0.2)
    close(found, _expected(q, k, v, w, 0.2))
