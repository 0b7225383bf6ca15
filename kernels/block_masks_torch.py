"""The lists of block_masks.py in tensor operations: for a CPU, and what the Triton kernels are compared with."""

import torch
from torch import Tensor

from dmabench.kernels.plan import Tiles

Lists = tuple[Tensor, Tensor, Tensor, Tensor]
"""Count and index of the partial, then of the full lists; int32."""


def by_query_block(tiles: Tiles, query_blocks: int) -> Lists:
    """Each query block's tiles: counts [B, G, Q] and indices [B, G, Q, N]."""
    ranges = (tiles.first_BGN, tiles.last_BGN, tiles.full_first_BGN, tiles.full_last_BGN)
    first, last, full_first, full_last = (x[:, :, None] for x in ranges)
    block = torch.arange(query_blocks, dtype=torch.int32, device=first.device)[:, None]
    full = (full_first <= block) & (block < full_last)
    partial = (first <= block) & (block < last) & ~full
    return *_compact(partial), *_compact(full)


def _compact(listed_BGQN: Tensor) -> tuple[Tensor, Tensor]:
    """The columns where `listed` is True, ascending, then zeros."""
    count = listed_BGQN.sum(-1, dtype=torch.int32)
    index = torch.sort(~listed_BGQN, dim=-1, stable=True).indices.to(torch.int32)
    return count, _zero_behind(count, index)


def by_tile(tiles: Tiles, query_blocks: int) -> Lists:
    """Each tile's query blocks, partial ones around full ones: counts [B, G, N] and indices [B, G, N, Q]."""
    place = torch.arange(query_blocks, dtype=torch.int32, device=tiles.first_BGN.device)
    before, full = tiles.full_first_BGN - tiles.first_BGN, tiles.full_last_BGN - tiles.full_first_BGN
    count = before + tiles.last_BGN - tiles.full_last_BGN
    index = tiles.first_BGN[..., None] + place
    index = torch.where(place < before[..., None], index, index + full[..., None])
    full_index = tiles.full_first_BGN[..., None] + place
    return count, _zero_behind(count, index), full, _zero_behind(full, full_index)


def _zero_behind(count: Tensor, index: Tensor) -> Tensor:
    """Templates load entries behind the count ahead of time, so those must be in range."""
    place = torch.arange(index.shape[-1], device=index.device)
    return torch.where(place < count[..., None], index, 0)
