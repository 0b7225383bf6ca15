"""nsa/fla: the selected branch, and where block sizes allow the compressed one, by fla-core's Triton kernels.

fla-core selects by blocks of one size (l = d = l'). Where the compressed blocks overlap, as in the paper, FlexAttention
attends to them, and the selection is made in plain tensor operations, block after block of queries. The sliding window
is flash attention's. fla-core 0.6.0; checked against `reference` by the tests marked gpu.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmabench.kernels import flex
from dmabench.kernels.block_masks import TileLists, tile_lists
from dmabench.kernels.native_sparse.compression import compress
from dmabench.kernels.native_sparse.reference import select_blocks
from dmabench.kernels.native_sparse.settings import Settings
from dmabench.kernels.plan import make_tiles
from dmabench.kernels.registry import Problem, Unsupported, needs_cuda, needs_half, wants_gradient
from dmabench.kernels.sliding_window import varlen_attend

LEAST_GROUP = 16
"""Query heads of a group are one side of fla-core's matrix products, which tensor cores want to be 16 at least."""

SELECT_ELEMENTS = 1 << 27
"""Scores of compressed keys that the selection in plain tensor operations holds at once: 512 MiB in float32, and some
temporaries of that size. Fewer would be many thousands of launches at T = 131072."""


def padded_heads(problem: Problem) -> int | None:
    """Query heads a group is padded to with zeros; None where it is not. Such a time is an upper bound: the padding is
    work that a kernel for this shape would not do."""
    width = _width(problem.groups)
    return None if width == problem.groups else width


def missing(device: str) -> str | None:
    """fla-core and einops, which it imports, and a CUDA device."""
    if device != "cuda":
        return needs_cuda("fla-core's native sparse attention")(device)
    for module, package in (("fla", "fla-core"), ("einops", "einops")):
        if find_spec(module) is None:
            return f"{package} is not installed: pip install 'dmabench[nsa]'"
    return None


def refuses(problem: Problem, settings: Settings) -> str | None:
    """Shapes and sizes that fla-core's kernels get wrong or do not take, with the reason, or None."""
    if problem.query_len != problem.key_len:
        return "nsa/fla needs as many queries as keys; nsa/reference decodes"
    if problem.head_dim > 256:
        return f"fla-core's native sparse attention takes head dims up to 256, not {problem.head_dim}"
    return needs_half(problem, "nsa/fla") or _refuses_settings(settings)


def _refuses_settings(settings: Settings) -> str | None:
    count, block = settings.select_count, settings.select_block
    if count & (count - 1) or block & (block - 1):
        return f"fla-core takes powers of two, not {count} blocks of {block}: it would select more than asked for"
    if block < 16:
        return f"fla-core multiplies blocks of 16 tokens or more, not {block}: use a larger window"
    if settings.uniform and 2 * count > block:
        return f"fla-core ranks blocks in tiles of {block}, twice the count at least: {count} are too many"
    return None


@torch.compiler.disable
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gates: Tensor,
    settings: Settings,
    scale: float,
    blocks: Tensor | None = None,
) -> Tensor:
    """See `dmabench.kernels.native_sparse_attention`; as many queries as keys.

    torch.compile breaks its graph around this call: fla-core's autograd functions are not traced.

    Args:
        blocks: int [B, G, T, n] (-1 for none) replaces the selection.
    """
    reason = _refuses_settings(settings)
    if reason:
        raise Unsupported(f"nsa/fla: {reason}")
    groups, keys = q.shape[1] // k.shape[1], k.shape[2]
    fla, q_wide = import_module("fla.ops.nsa.parallel"), _pad_groups(q, k.shape[1]).transpose(1, 2)
    kc, vc = compress(k, settings), compress(v, settings)
    if settings.uniform:
        compressed, own_blocks = _compressed_by_fla(fla, q_wide, kc, vc, keys, settings, scale, blocks is None)
        compressed = _unpad_groups(compressed, k.shape[1], groups)
    else:
        compressed, own_blocks = _compressed_by_flex(q, kc, vc, keys, settings, scale, blocks is None)
    if blocks is None:
        blocks = own_blocks
    else:
        blocks = F.pad(blocks, (0, settings.select_count - blocks.shape[-1]), value=-1).transpose(1, 2).int()
    selected = fla.ParallelNSAFunction.apply(
        q_wide,
        k.transpose(1, 2),
        v.transpose(1, 2),
        blocks,
        settings.select_count,
        settings.select_block,
        scale,
        None,
    )
    window = varlen_attend(q, k, v, window=settings.window, scale=scale)
    branches = (compressed, _unpad_groups(selected, k.shape[1], groups), window)
    gates = gates.to(q.dtype)
    out = branches[0] * gates[..., :1]
    for index in (1, 2):
        out = torch.addcmul(out, branches[index], gates[..., index : index + 1])
    return out


def _compressed_by_fla(fla: Any, q_BTHD, kc, vc, keys, settings, scale, select) -> tuple[Tensor, Tensor | None]:
    """out [B, T, H, V] and blocks int32 [B, T, G, n] by fla-core, for l = d = l'."""
    missing_rows = settings.selectable_len(keys) - kc.shape[2]  # an incomplete block has a row there that none sees
    kc, vc = (F.pad(x, (0, 0, 0, missing_rows)).transpose(1, 2) for x in (kc, vc))
    block = settings.select_block
    out, lse = fla.parallel_nsa_compression(q=q_BTHD, k=kc, v=vc, TK=keys, block_size=block, scale=scale)
    if not select:
        return out, None
    with torch.no_grad():
        blocks = fla.parallel_nsa_topk(
            q=q_BTHD, k=kc, TK=keys, lse=lse, block_counts=settings.select_count, block_size=block, scale=scale
        )
    return out, blocks


def _compressed_by_flex(q, kc, vc, keys, settings, scale, select) -> tuple[Tensor, Tensor | None]:
    """out [B, H, T, V] and blocks int32 [B, T, G, n] for compressed blocks that overlap."""
    if not kc.shape[2]:
        out = q.new_zeros(*q.shape[:-1], vc.shape[-1])
    else:
        birth, evict, lists = _compressed_lists(keys, settings, wants_gradient(q, kc, vc), q.device)
        out, _ = flex.attend(
            q, kc, vc, bias=None, references=None, birth=birth, evict=evict, lists=lists, offset=0, scale=scale
        )
    if not select:
        return out, None
    blocks = select_blocks(q, kc, keys, settings, scale, stable=False, at_once=SELECT_ELEMENTS)
    blocks = F.pad(blocks, (0, settings.select_count - blocks.shape[-1]), value=-1)
    return out, blocks.transpose(1, 2).int()


@lru_cache(maxsize=16)
def _compressed_lists(
    keys: int, settings: Settings, backward: bool, device: torch.device
) -> tuple[Tensor, Tensor, TileLists]:
    """A compressed key is one that is born when its block is complete and lives for ever."""
    birth = torch.arange(settings.compressed_len(keys), dtype=torch.int32, device=device)
    birth = (birth * settings.compress_stride + settings.compress_block - 1)[None, None]
    evict = torch.full_like(birth, keys)
    tiles = make_tiles(birth, evict, query_offset=0, query_len=keys, block_q=flex.BLOCK, block_k=flex.BLOCK)
    return birth, evict, tile_lists(tiles, -(-keys // flex.BLOCK), backward)


def _width(groups: int) -> int:
    return max(LEAST_GROUP, 1 << (groups - 1).bit_length())


def _pad_groups(q: Tensor, kv_heads: int) -> Tensor:
    """[B, G H/G, T, D] -> [B, G width, T, D], zero heads behind each group's own: they add the same probability to
    every block's score, so the selection is that of the others."""
    q_BGgTD = q.unflatten(1, (kv_heads, -1))
    groups = q_BGgTD.shape[2]
    return F.pad(q_BGgTD, (0, 0, 0, 0, 0, _width(groups) - groups)).flatten(1, 2)


def _unpad_groups(out_BTHV: Tensor, kv_heads: int, groups: int) -> Tensor:
    """[B, T, G width, V] -> [B, G groups, T, V]."""
    return out_BTHV.unflatten(2, (kv_heads, -1))[:, :, :, :groups].flatten(2, 3).transpose(1, 2)
