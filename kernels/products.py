"""Scores q k^T that are not rounded to half precision on the way."""

import torch
from torch import Tensor

from dmabench.kernels.registry import wants_gradient


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
