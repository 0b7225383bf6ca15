"""Products of half-precision tensors whose results stay wide: scores q k^T, and sums of values over very many keys."""

import torch
from torch import Tensor

from dmabench.kernels.registry import wants_gradient

SPLIT = 2048
"""Keys that one product of `weighted_sum` adds up."""


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T for a [..., M, K] and b [..., N, K] of one dtype and equal leading sizes: float32, or float64 of float64.

    On CUDA half-precision inputs stay as they are and only the result is wide.
    """
    if a.dtype in (torch.float32, torch.float64):
        return a @ b.mT
    if a.is_cuda and not wants_gradient(a, b):
        out = torch.bmm(a.flatten(0, -3), b.flatten(0, -3).mT, out_dtype=torch.float32)
        return out.unflatten(0, a.shape[:-2])
    return a.float() @ b.float().mT


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """weights values for [..., M, K] and [..., K, N] with few rows M and many keys K, in at least float32.

    The keys are cut into pieces whose sums are added at the end. One matrix product would leave a card with a block of
    work for each tile of the small result, a handful, whatever the number of keys.
    """
    weights, keys = weights.to(values.dtype), values.shape[-2]
    pieces = keys // SPLIT
    if pieces < 2:
        return wide_product(weights, values.mT)
    whole = pieces * SPLIT
    cut_weights = weights[..., :whole].unflatten(-1, (pieces, SPLIT)).movedim(-2, -3)
    cut_values = values[..., :whole, :].unflatten(-2, (pieces, SPLIT))
    out = wide_product(cut_weights, cut_values.mT).sum(-3)
    return out if whole == keys else out + wide_product(weights[..., whole:], values[..., whole:, :].mT)
