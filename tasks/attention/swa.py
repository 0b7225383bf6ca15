"""Sliding-window attention: the last `window` keys, the query's own among them."""

import torch
from torch import Tensor

from dmabench.kernels import registry
from dmabench.kernels.registry import Problem, wants_gradient
from dmabench.tasks.attention.base import (
    GroupedAttention,
    Step,
    by_slot,
    causal_attention,
    live_pairs,
    uncompiled_on_cuda,
)
from dmabench.tasks.cache import Growing, Ring, State

LEAST_BLOCK = 256


class WindowAttention(GroupedAttention):
    """Remembers the last `window` keys, or all of them where the cache must be able to go back."""

    def new_state(self, full: bool) -> State:
        return Growing() if full else Ring(self.config.window)

    def first(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        if step.state is not None:
            step.state.append(*by_slot(step, k, v))
        return window_attention(q, k, v, self.config.window)

    def further(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        window, n = self.config.window, q.shape[2]
        if isinstance(step.state, Growing):
            k, v = (held[:, :, max(0, step.state.seen - n - window + 1) :] for held in step.state.append(k, v))
            mask = None if step.mask_BT is None else step.mask_BT[:, -k.shape[2] :]
            return causal_attention(q, k, v, live_pairs(n, k.shape[2], q.device, mask, window))
        if n == 1:  # the order of keys does not matter, so the ring is attended to as it lies
            step.state.append(k, v)
            positions = step.state.positions()
            k, v = (held[:, :, : len(positions)] for held in step.state.held)
            mask = None if step.mask_BT is None else step.mask_BT[:, None, None, positions]
            return causal_attention(q, k, v, mask)
        k_all, v_all = (torch.cat(pair, 2) for pair in zip(step.state.in_order(), (k, v), strict=True))
        step.state.append(k, v)
        mask = None if step.mask_BT is None else step.mask_BT[:, -k_all.shape[2] :]
        return causal_attention(q, k_all, v_all, live_pairs(n, k_all.shape[2], q.device, mask, window))


@uncompiled_on_cuda
def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of q [B, H, T, D] to the last `window` of k, v [B, G, T, D], in O(T * window) memory.

    On a GPU through a backend of the registry (FlashAttention with a window in half precision, FlexAttention
    otherwise); elsewhere, and where those refuse, in blocks of queries through SDPA.
    """
    T = q.shape[2]
    if window >= T:
        return causal_attention(q, k, v)
    if q.device.type == "cuda":
        problem = Problem(
            device="cuda",
            dtype=q.dtype,
            batch=q.shape[0],
            heads=q.shape[1],
            kv_heads=k.shape[1],
            query_len=T,
            key_len=T,
            head_dim=q.shape[3],
            window=window,
            backward=wants_gradient(q, k, v),
        )
        for name in ("swa/varlen-flash", "swa/flex"):
            backend = registry.get(name)
            if backend.refusal(problem) is None:
                return backend.attend(q, k, v, window=window, scale=q.shape[3] ** -0.5)
    size = max(window, LEAST_BLOCK)
    blocks = []
    for start in range(0, T, size):
        first, end = max(0, start - window + 1), min(start + size, T)
        live = live_pairs(end - start, end - first, q.device, None, window)
        blocks.append(causal_attention(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], live))
    return torch.cat(blocks, 2)
