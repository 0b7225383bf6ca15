"""Pairs, floating-point operations and bytes of each attention: the only place that counts.

Useful means kept: query-key pairs that the function attends to. Products are counted as 2 operations a multiply-add;
the softmax is not counted, as in the papers whose figures one compares with.
"""

PRODUCTS = {"fwd": 2, "bwd": 5, "fwd+bwd": 7}
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
    """Operations of a pass ("fwd", "bwd", "fwd+bwd") over `pairs` query-key pairs, all heads together."""
    return PRODUCTS[what] * 2 * head_dim * pairs


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
