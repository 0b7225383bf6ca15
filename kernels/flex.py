"""One compiled FlexAttention for all our masks: keys with a birth and an eviction time, and perhaps a bias.

dma/flex, swa/flex and dense/flex differ only in these three tensors and in their tile lists.
"""

from functools import cache
from shutil import which
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from dmabench.kernels.block_masks import TileLists
from dmabench.kernels.registry import Problem

BLOCK = 128
"""Tile size, queries and keys. FlexAttention's own default, and a multiple of every block its templates choose."""

_RECOMPILES = 4096
"""Each shape compiles once; past dynamo's default of 8 the call would fall back to an unfused T x T implementation."""


def missing(device: str) -> str | None:
    if device == "cpu" and not (which("c++") or which("g++") or which("clang++")):
        return "FlexAttention on a CPU is compiled at first use and needs a C++ compiler: install g++"
    return None


def refuses(problem: Problem) -> str | None:
    if problem.device == "cpu" and problem.backward:
        return "FlexAttention has no backward on a CPU; dma/reference has one, or use a CUDA device"
    if problem.dtype == torch.float64:
        return "FlexAttention has no float64; dma/reference has it"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    birth: Tensor,
    evict: Tensor,
    lists: TileLists,
    offset: int,
    scale: float,
    references: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention over the tiles in `lists` with the mask birth <= i + offset < evict.

    Args:
        q: [B, H, Tq, D]; k, v: [B, G, K, D], in any key order.
        bias, birth, evict: [B or 1, G or 1, K] in the same order; bias is added to the scores.
        lists: as `block_masks.tile_lists` makes them for BLOCK x BLOCK tiles, one set a query head or one for all.
        references: [B, G, Tq], what the bias of a row is taken relative to (Plan.references); None where it is None.

    Returns:
        out [B, H, Tq, D] and lse [B, H, Tq] (None on a CPU).
    """
    head_dim = q.shape[-1]
    padding = 0 if head_dim & (head_dim - 1) == 0 else (1 << head_dim.bit_length()) - head_dim
    if padding:  # the templates want powers of two; zero columns change neither scores nor the columns kept
        q, k, v = (torch.nn.functional.pad(x, (0, padding)) for x in (q, k, v))
    with torch._dynamo.config.patch(recompile_limit=_RECOMPILES, accumulated_recompile_limit=_RECOMPILES):
        call = _compiled(bias is not None)
        out, lse = call(q, k, v, bias, references, birth, evict, lists.tensors(), offset, scale)
    if lse is not None and references is not None:
        lse = lse + references.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return out[..., :head_dim], lse


@cache
def _compiled(biased: bool) -> Any:
    return torch.compile(_with_bias if biased else _without_bias, fullgraph=True, dynamic=False)


def _with_bias(q, k, v, bias, references, birth, evict, lists, offset, scale):
    groups, batched = q.shape[1] // k.shape[1], birth.shape[0] > 1

    def add_bias(score, b, h, i, j):
        b, g = b if batched else 0, h // groups
        return score + (bias[b, g, j] - references[b, g, i])

    return _flex(q, k, v, add_bias, birth, evict, lists, offset, scale)


def _without_bias(q, k, v, bias, references, birth, evict, lists, offset, scale):
    return _flex(q, k, v, None, birth, evict, lists, offset, scale)


def _flex(q, k, v, score_mod, birth, evict, lists, offset, scale):
    groups = q.shape[1] // k.shape[1]
    batched, by_head = birth.shape[0] > 1, birth.shape[1] > 1

    def live(b, h, i, j):
        b = b if batched else 0
        g = h // groups if by_head else 0
        position = i + offset
        return (birth[b, g, j] <= position) & (position < evict[b, g, j])

    mask = BlockMask((q.shape[2], k.shape[2]), **lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=live)
    if q.device.type == "cpu":  # its CPU template has no lse
        return flex_attention(q, k, v, score_mod, mask, scale, enable_gqa=groups > 1), None
    out, aux = flex_attention(
        q,
        k,
        v,
        score_mod,
        mask,
        scale,
        enable_gqa=groups > 1,
        # Never its decoding template: torch 2.11 finds no configuration of it where queries x group exceed a block.
        kernel_options={"BACKEND": "TRITON"},
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse
