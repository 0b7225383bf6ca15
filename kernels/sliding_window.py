"""Causal attention to the last `window` keys, the query's own among them: 0 <= i - j < window."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmabench.kernels import flex
from dmabench.kernels.block_masks import TileLists, tile_lists
from dmabench.kernels.plan import make_tiles
from dmabench.kernels.registry import Backend, Problem, needs_cuda, needs_half, wants_gradient


@lru_cache(maxsize=16)
def window_lists(T: int, window: int, backward: bool, device: torch.device) -> tuple[Tensor, Tensor, TileLists]:
    """Birth, eviction [1, 1, T] and tile lists of a sliding window; key j lives for the queries [j, j + window)."""
    birth = torch.arange(T, dtype=torch.int32, device=device)
    evict = (birth + min(window, T)).clamp(max=T)
    birth, evict = birth[None, None], evict[None, None]
    tiles = make_tiles(birth, evict, query_offset=0, query_len=T, block_q=flex.BLOCK, block_k=flex.BLOCK)
    return birth, evict, tile_lists(tiles, -(-T // flex.BLOCK), backward)


def flex_attend(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
    """FlexAttention over the last `window` keys; a window of all keys is dense causal attention."""
    birth, evict, lists = window_lists(k.shape[2], window, wants_gradient(q, k, v), q.device)
    return flex.attend(q, k, v, None, birth, evict, lists, 0, scale)[0]


def varlen_attend(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
    """FlashAttention-2 with a window, through torch's packed-sequences entry."""
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, D = q.shape
    starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)
    groups = H // k.shape[1]
    if groups > 1:  # torch 2.11's entry has no grouped heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    out = varlen_attn(q, k, v, starts, starts, T, T, scale=scale, window_size=(min(window, T) - 1, 0))
    assert isinstance(out, Tensor)  # a pair only where lse is asked for
    return out.view(B, T, H, D).transpose(1, 2)


def _decode(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
    """One query, q [B, H, 1, D], at the last of the keys' positions. A cache of a sliding window holds no more than
    the last `window` keys, so these are all that is read of k and v, without a copy and without a mask."""
    first = max(0, k.shape[2] - window)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True):
        return F.scaled_dot_product_attention(
            q, k[:, :, first:], v[:, :, first:], scale=scale, enable_gqa=q.shape[1] > k.shape[1]
        )


def refuses_flex(problem: Problem) -> str | None:
    """The lists are made for as many queries as keys."""
    if problem.query_len != problem.key_len:
        return "FlexAttention with a window or all keys is set up for as many queries as keys"
    return flex.refuses(problem)


def _refuses_many(problem: Problem) -> str | None:
    if problem.query_len == 1:
        return None
    return "swa/sdpa takes one query, to decode: SDPA would need a T x T mask; use swa/flex or swa/varlen-flash"


def _refuses_varlen(problem: Problem) -> str | None:
    other_length = problem.query_len != problem.key_len
    return needs_half(problem, "FlashAttention") or (
        "swa/varlen-flash needs as many queries as keys" if other_length else None
    )


BACKENDS = [
    Backend("swa", "flex", flex_attend, missing=flex.missing, refuses=refuses_flex),
    Backend(
        "swa",
        "varlen-flash",
        varlen_attend,
        missing=needs_cuda("FlashAttention for packed sequences"),
        refuses=_refuses_varlen,
    ),
    Backend("swa", "sdpa", _decode, passes=("decode",), refuses=_refuses_many),
]
