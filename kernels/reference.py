"""Dynamic mask attention by its definition: dense, in plain tensor operations, in any precision up to float64.

This is the specification that every backend is compared with. It is blocked over queries, so it needs no T x T tensor;
it is exact, not fast. Forward: arXiv 2508.02124, Eq. 6-10. Backward: the usual one of softmax, written out so that
sums over queries are accumulated in the computing precision whatever the dtype of the inputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 24
"""Scores computed at once; with float64 temporaries this keeps a block under about 1 GiB."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    birth: Tensor,
    evict: Tensor,
    scale: float,
    query_positions: Tensor,
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`o = softmax(q k^T * scale + m) v` with m = delta where birth <= i < evict, else minus infinity.

    Args:
        q: [B, H, R, D], the queries at `query_positions` (int [R], any subset of the positions, in any order).
        k, v: [B, G, T, D], H a multiple of G; delta: [B, G, T]; birth, evict: int [B, G, T].
        rounding: round probabilities and their gradients to this dtype before each product, and the output before the
            backward reads it, as a kernel does that feeds tensor cores and stores its output; the correctness gate
            uses it to know what error a dtype must cost.

    Returns:
        out [B, H, R, D] in q's dtype and lse [B, H, R] (natural logarithm; -inf where no key is live).
    """
    return _Attend.apply(q, k, v, delta, birth, evict, scale, query_positions, rounding)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, delta, birth, evict, scale, query_positions, rounding):
        precision = torch.float64 if q.dtype == torch.float64 else torch.float32
        qf, kf, vf, deltaf = (_by_group(q, k).to(precision), k.to(precision), v.to(precision), delta.to(precision))
        out = torch.empty_like(qf)
        lse = qf.new_empty(qf.shape[:-1])
        for rows in _row_blocks(qf, k.shape[2]):
            scores = _scores(qf[..., rows, :], kf, deltaf, birth, evict, scale, query_positions[rows])
            lse[..., rows] = scores.logsumexp(-1)
            probabilities = _rounded((scores - _finite(lse[..., rows])[..., None]).exp_(), rounding)
            out[..., rows, :] = torch.einsum("bgrqk,bgkd->bgrqd", probabilities, vf)
        ctx.save_for_backward(q, k, v, delta, birth, evict, query_positions, out, lse)
        ctx.scale, ctx.rounding = scale, rounding
        lse_BHR = lse.flatten(1, 2)
        ctx.mark_non_differentiable(lse_BHR)
        return out.flatten(1, 2).to(q.dtype), lse_BHR

    @staticmethod
    def backward(ctx, dout, _):
        q, k, v, delta, birth, evict, query_positions, out, lse = ctx.saved_tensors
        scale, rounding, precision = ctx.scale, ctx.rounding, out.dtype
        qf, kf, vf, deltaf = (_by_group(q, k).to(precision), k.to(precision), v.to(precision), delta.to(precision))
        dout = _by_group(dout, k).to(precision)
        dq, dk, dv, ddelta = (torch.zeros_like(x) for x in (qf, kf, vf, deltaf))
        for rows in _row_blocks(qf, k.shape[2]):
            scores = _scores(qf[..., rows, :], kf, deltaf, birth, evict, scale, query_positions[rows])
            probabilities = scores.sub_(_finite(lse[..., rows])[..., None]).exp_()
            dv += torch.einsum("bgrqk,bgrqd->bgkd", _rounded(probabilities, rounding), dout[..., rows, :])
            dprobabilities = torch.einsum("bgrqd,bgkd->bgrqk", dout[..., rows, :], vf)
            expected = (dout[..., rows, :] * _rounded(out[..., rows, :], rounding)).sum(-1, keepdim=True)
            dscores = probabilities * (dprobabilities - expected)
            ddelta += dscores.sum((2, 3))
            dscores = _rounded(dscores, rounding)
            dq[..., rows, :] = torch.einsum("bgrqk,bgkd->bgrqd", dscores, kf) * scale
            dk += torch.einsum("bgrqk,bgrqd->bgkd", dscores, qf[..., rows, :]) * scale
        grads = (dq.flatten(1, 2).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), ddelta.to(delta.dtype))
        return *grads, None, None, None, None, None


def _by_group(x_BHRD: Tensor, k: Tensor) -> Tensor:
    """[B, H, R, D] -> [B, G, H/G, R, D]: consecutive query heads share a key/value head."""
    return x_BHRD.unflatten(1, (k.shape[1], -1))


def _row_blocks(q: Tensor, keys: int) -> Iterator[slice]:
    heads, queries = q.shape[:3].numel(), q.shape[3]
    size = max(1, BLOCK_ELEMENTS // (heads * keys))
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def _scores(q, k, delta, birth, evict, scale, positions) -> Tensor:
    scores = torch.einsum("bgrqd,bgkd->bgrqk", q, k) * scale + delta[:, :, None, None, :]
    i = positions[:, None]
    live = (birth[:, :, None, :] <= i) & (i < evict[:, :, None, :])
    return scores.masked_fill_(~live[:, :, None], float("-inf"))


def _finite(lse: Tensor) -> Tensor:
    """A row without a live key has lse -inf; subtracting 0 instead keeps its probabilities 0 rather than NaN."""
    return lse.masked_fill(lse == float("-inf"), 0.0)


def _rounded(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype).to(x.dtype)
