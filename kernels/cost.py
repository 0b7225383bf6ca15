"""Pairs, floating-point operations and bytes of each attention: the only place that counts.

Useful means kept: query-key pairs that the function attends to. Products are counted as 2 operations a multiply-add;
the softmax is not counted, as in the papers whose figures one compares with.
"""

from typing import NamedTuple

PRODUCTS = {"fwd": 2, "bwd": 5, "fwd+bwd": 7, "decode": 2}
"""Matrix products of one pair of tiles: q k^T and p v; backward recomputes q k^T and adds dv, dp, dq, dk."""


def kept_pairs(query_len: int, key_len: int, window: int | None) -> int:
    """Query-key pairs a head keeps, without padding: the sum of min(i + 1, window) over the query positions.

    Args:
        window: None for dense causal attention.
    """
    window = key_len if window is None else min(window, key_len)

    def up_to(n: int) -> int:
        """Sum of min(i + 1, window) for i < n."""
        rising = min(n, window)
        return rising * (rising + 1) // 2 + (n - rising) * window

    return up_to(key_len) - up_to(key_len - query_len)


def density(query_len: int, key_len: int, window: int | None) -> float:
    """Kept pairs over those of dense causal attention."""
    return kept_pairs(query_len, key_len, window) / kept_pairs(query_len, key_len, None)


def flops(what: str, pairs: int, head_dim: int) -> int:
    """Operations of a pass (a key of PRODUCTS) over `pairs` query-key pairs, all heads together."""
    return PRODUCTS[what] * 2 * head_dim * pairs


def linear_flops(what: str, tokens: int, parameters: int) -> int:
    """Operations of projections of `tokens` tokens by matrices of `parameters` entries in all."""
    return {"fwd": 1, "bwd": 2, "fwd+bwd": 3, "decode": 1}[what] * 2 * tokens * parameters


def bytes_moved(
    what: str,
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    query_len: int,
    key_len: int,
    head_dim: int,
    itemsize: int,
    biased: bool,
) -> int:
    """The fewest bytes a pass moves: each input read once, each output written once.

    Args:
        biased: with delta and eviction times (dma), 8 bytes a key and head, and ddelta in the backward.
    """
    q = batch * heads * query_len * head_dim * itemsize
    kv = 2 * batch * kv_heads * key_len * head_dim * itemsize
    lse = batch * heads * query_len * 4
    per_key = batch * kv_heads * key_len * 4 if biased else 0
    forward = 2 * q + kv + lse + 2 * per_key
    backward = 4 * q + 2 * kv + lse + 3 * per_key
    return {"fwd": forward, "bwd": backward, "fwd+bwd": forward + backward}[what]


def cache_bytes(*, batch: int, kv_heads: int, rows: int, head_dim: int, itemsize: int) -> int:
    """Bytes of keys and values: `rows` is every token for dense attention, min(window, tokens) for a sliding window."""
    return 2 * batch * kv_heads * rows * head_dim * itemsize


class SparsePairs(NamedTuple):
    """Query-key pairs of native sparse attention, one head: each branch counts what it reads, overlap included."""

    compressed: int
    selected: int
    window: int

    @property
    def total(self) -> int:
        return sum(self)


def sparse_pairs(
    query_len: int,
    key_len: int,
    *,
    compress_block: int,
    compress_stride: int,
    select_block: int,
    select_count: int,
    window: int,
) -> SparsePairs:
    """Pairs of the last `query_len` queries; the arguments are the fields of `native_sparse.Settings`, so that
    `sparse_pairs(Tq, Tk, **asdict(settings))` fits. Operations follow as `flops(what, pairs.total, head_dim)`: the
    selection reads probabilities that the compressed branch has computed anyway.
    """

    def compressed_up_to(n: int) -> int:
        """Sum over i < n of the blocks complete at i: (i + 1 - l) // d + 1."""
        full, rest = divmod(max(0, n - compress_block + 1), compress_stride)
        return compress_stride * full * (full + 1) // 2 + rest * (full + 1)

    def selected_up_to(n: int) -> int:
        """Sum over i < n: whole blocks before the query's own, at most select_count - 1, and its own up to i."""
        full, rest = divmod(n, select_block)
        rising = min(full, select_count)
        earlier = rising * (rising - 1) // 2 + (full - rising) * (select_count - 1)
        own = full * select_block * (select_block + 1) // 2
        of_rest = rest * min(full, select_count - 1) * select_block + rest * (rest + 1) // 2
        return earlier * select_block**2 + own + of_rest

    first = key_len - query_len
    return SparsePairs(
        compressed_up_to(key_len) - compressed_up_to(first),
        selected_up_to(key_len) - selected_up_to(first),
        kept_pairs(query_len, key_len, window),
    )


def latent_flops(
    what: str,
    *,
    batch: int,
    heads: int,
    query_len: int,
    key_len: int,
    latent: int,
    nope: int,
    rope: int,
    value: int,
    absorbed: bool = False,
) -> int:
    """Operations of multi-head latent attention, its two projections of the latent included.

    Raises:
        KeyError: a backward of the absorbed form, which exists for decoding alone.
    """
    pairs = batch * heads * kept_pairs(query_len, key_len, None)
    if absorbed:
        per_pair = {"fwd": 2 * latent + rope}[what]
        projections = batch * heads * query_len * latent * (nope + value)
    else:
        qk, pv = nope + rope, value
        per_pair = {"fwd": qk + pv, "bwd": 3 * qk + 2 * pv, "fwd+bwd": 4 * qk + 3 * pv}[what]
        times = {"fwd": 1, "bwd": 2, "fwd+bwd": 3}[what]
        projections = times * batch * heads * key_len * latent * (nope + value)
    return 2 * (per_pair * pairs + projections)


def latent_bytes_moved(
    what: str,
    *,
    batch: int,
    heads: int,
    query_len: int,
    key_len: int,
    latent: int,
    nope: int,
    rope: int,
    value: int,
    itemsize: int,
) -> int:
    """The fewest bytes a pass of multi-head latent attention moves, as `bytes_moved` counts: keys and values of heads
    need not exist in memory."""
    q = batch * heads * query_len * (nope + rope) * itemsize
    out = batch * heads * query_len * value * itemsize
    shared = (batch * key_len * (latent + rope) + heads * latent * (nope + value)) * itemsize
    lse = batch * heads * query_len * 4
    forward = q + shared + out + lse
    backward = 2 * q + 2 * shared + 2 * out + lse
    return {"fwd": forward, "bwd": backward, "fwd+bwd": forward + backward}[what]
