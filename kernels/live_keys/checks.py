"""What LiveKeys refuses, and the words for it."""

import torch
from torch import Tensor

from dmabench.kernels.dma import DTYPES
from dmabench.kernels.plan import Plan
from dmabench.kernels.registry import wants_gradient


def check_window(window: int) -> None:
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be an int of at least 1, got {window!r}: a query attends to itself or more")


def check_keys(k: Tensor, v: Tensor, delta: Tensor, key_mask: Tensor | None) -> None:
    """k, v [B, G, T, D], delta [B, G, T], key_mask bool [B, T]."""
    if k.dim() != 4 or k.shape != v.shape or delta.shape != k.shape[:3] or k.shape[2] == 0:
        raise ValueError(
            "k and v must be [B, G, T, D] and delta [B, G, T] with T >= 1, "
            f"got {tuple(k.shape)}, {tuple(v.shape)} and {tuple(delta.shape)}"
        )
    wanted = (torch.float32, torch.float64) if k.dtype == torch.float64 else (torch.float32,)
    if k.dtype not in DTYPES or v.dtype != k.dtype or delta.dtype not in wanted:
        raise ValueError(
            f"k and v must share one of {DTYPES} and delta be float32, got {k.dtype}, {v.dtype}, {delta.dtype}"
        )
    shape = (k.shape[0], k.shape[2])
    if key_mask is not None and (key_mask.shape != shape or key_mask.dtype != torch.bool):
        raise ValueError(
            f"key_mask must be bool {shape}, True for real keys; got {key_mask.dtype} {tuple(key_mask.shape)}"
        )


def check_same(k_BGWD: Tensor, delta_BGW: Tensor, k: Tensor, delta: Tensor) -> None:
    """New keys are of the batch, heads, dtypes and device of those held."""
    held = (tuple(k_BGWD.shape[:2]), k_BGWD.shape[3], k_BGWD.dtype, delta_BGW.dtype, k_BGWD.device)
    new = (tuple(k.shape[:2]), k.shape[3], k.dtype, delta.dtype, k.device)
    if held != new:
        raise ValueError(
            f"the cache has (batch, heads), head dimension, dtypes of keys and delta, device {held}; "
            f"the call has {new}. prefill starts anew"
        )


def check_plan(plan: Plan, window: int, delta: Tensor) -> None:
    if (plan.window, plan.evict_BGT.shape) != (window, delta.shape):
        raise ValueError(
            f"the plan is for window {plan.window} and delta {tuple(plan.evict_BGT.shape)}; "
            f"the cache has window {window} and delta is {tuple(delta.shape)}"
        )


def check_query(q: Tensor, n: int, k: Tensor) -> None:
    """q [B, H, n, D] for keys k [B, G, any, D]."""
    B, G, _, D = k.shape
    if q.dim() != 4 or q.shape[2] != n or (q.shape[0], q.shape[3]) != (B, D) or q.shape[1] % G or not q.shape[1]:
        more = "; several queries belong to extend, which appends their keys as well" if n == 1 else ""
        raise ValueError(f"q must be [{B}, H, {n}, {D}] with H a multiple of {G}, got {tuple(q.shape)}{more}")
    if q.dtype != k.dtype or q.device != k.device:
        raise ValueError(f"q is {q.dtype} on {q.device}, the keys are {k.dtype} on {k.device}")


def check_no_gradient(*tensors: Tensor) -> None:
    if wants_gradient(*tensors):
        raise ValueError("a decoding cache has no gradients: call it under torch.no_grad(), or train without it")
