"""Native sparse attention by its definition, in plain tensor operations and any precision up to float64.

Blocked over queries, each block checkpointed, so that memory is a block's scores and never T x T; exact, not fast. The
three branches share keys and values, as in fla-core; the paper gives each branch its own projections.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmabench.kernels.native_sparse.compression import compress
from dmabench.kernels.native_sparse.selection import as_mask, block_scores, choose
from dmabench.kernels.native_sparse.settings import Settings
from dmabench.kernels.products import wide_product
from dmabench.kernels.registry import wants_gradient

BLOCK_ELEMENTS = 1 << 24
"""Scores computed at once; with the temporaries a block stays under about 1 GiB in float64."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    settings: Settings,
    scale: float,
    *,
    compressed: tuple[Tensor, Tensor] | None = None,
    blocks: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """gates[0] * compressed attention + gates[1] * attention to selected blocks + gates[2] * sliding window.

    Arguments as `native_sparse_attention`; `blocks` int [B, G, R, n] (-1 for none) replaces the selection.

    Returns:
        [B, H, R, V] in q's dtype.
    """
    Tk, G = k.shape[2], k.shape[1]
    if positions is None:
        positions = torch.arange(Tk - q.shape[2], Tk, device=q.device)
    precision = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = k.to(precision), v.to(precision)
    kc, vc = (compress(x, settings) for x in (k, v)) if compressed is None else (x.to(precision) for x in compressed)
    parts = []
    for rows in _row_blocks(q, Tk, BLOCK_ELEMENTS):
        args = (
            q[:, :, rows].to(precision).unflatten(1, (G, -1)),
            k,
            v,
            kc,
            vc,
            gates[:, :, rows].to(precision).unflatten(1, (G, -1)),
            positions[..., rows],
            None if blocks is None else blocks[:, :, rows],
            settings,
            scale,
        )
        if wants_gradient(q, k, v, kc, vc, gates):
            out = checkpoint(_rows, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            out = _rows(*args)
        parts.append(out.flatten(1, 2).to(q.dtype))
    return torch.cat(parts, 2)


def select_blocks(
    q: Tensor,
    kc: Tensor,
    key_len: int,
    settings: Settings,
    scale: float,
    positions: Tensor | None = None,
    stable: bool = True,
    at_once: int = BLOCK_ELEMENTS,
) -> Tensor:
    """The blocks that the queries select: int64 [B, G, R, min(n, S)], best first, -1 where there are fewer.

    Args:
        q: [B, H, R, D] at `positions`, by default the last R of `key_len`; kc: [B, G, C, D], the compressed keys, from
            which scores are computed in at least float32.
        stable: as in `choose`.
        at_once: scores computed at once.
    """
    if positions is None:
        positions = torch.arange(key_len - q.shape[2], key_len, device=q.device)
    with torch.no_grad():
        parts = []
        for rows in _row_blocks(q, kc.shape[2] + settings.selectable_len(key_len), at_once):
            q_BGgRD = q[:, :, rows].unflatten(1, (kc.shape[1], -1))
            probabilities = _compressed_probabilities(q_BGgRD, kc, positions[..., rows], settings, scale)
            parts.append(_choose(probabilities, positions[..., rows], settings, key_len, stable))
    return torch.cat(parts, 2)


def _rows(q, k, v, kc, vc, gates, positions, chosen, settings, scale) -> Tensor:
    """One block of queries: q [B, G, H/G, R, D] and gates [B, G, H/G, R, 3] -> [B, G, H/G, R, V]."""
    Tk = k.shape[2]
    probabilities = _compressed_probabilities(q, kc, positions, settings, scale)
    out = gates[..., :1] * torch.einsum("bghrc,bgcd->bghrd", probabilities, vc)
    if chosen is None:
        chosen = _choose(probabilities.detach(), positions, settings, Tk)
    i, j = per_query(positions), torch.arange(Tk, device=q.device)
    selected = as_mask(chosen, settings.selectable_len(Tk)).repeat_interleave(settings.select_block, -1)[..., :Tk]
    scores = torch.einsum("bghrd,bgtd->bghrt", q, k) * scale
    for gate, live in ((1, selected[:, :, None] & (j <= i)), (2, (j <= i) & (j > i - settings.window))):
        probabilities = scores.masked_fill(~live, -torch.inf).softmax(-1)
        out = out + gates[..., gate : gate + 1] * torch.einsum("bghrt,bgtd->bghrd", probabilities, v)
    return out


def _compressed_probabilities(q, kc, positions, settings, scale) -> Tensor:
    """[B, G, H/G, R, C]; a compressed key is seen once its block is complete, and a query that sees none has zeros."""
    seen = settings.compress_block - 1 + settings.compress_stride * torch.arange(kc.shape[2], device=kc.device)
    live = seen <= per_query(positions)
    scores = wide_product(q.flatten(2, 3), kc).unflatten(2, q.shape[2:4]) * scale
    empty = ~live.any(-1, keepdim=True)
    return scores.masked_fill(~(live | empty), -torch.inf).softmax(-1).masked_fill(empty, 0.0)


def _choose(probabilities_BGgRC, positions, settings, key_len, stable=True) -> Tensor:
    scores = block_scores(probabilities_BGgRC.sum(2), settings, settings.selectable_len(key_len))
    return choose(scores, positions, settings, stable)


def per_query(positions: Tensor) -> Tensor:
    """[R] or [B, R] -> [B or 1, 1, 1, R, 1], to compare with positions of keys in scores."""
    return positions[None, None, None, :, None] if positions.dim() == 1 else positions[:, None, None, :, None]


def _row_blocks(q: Tensor, keys: int, at_once: int) -> Iterator[slice]:
    B, H, queries, _ = q.shape
    size = max(1, at_once // (B * H * keys))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))
