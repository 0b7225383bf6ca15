"""FlexAttention's tile lists from ranges of query blocks, without ever looking at a T x T grid.

A tile of keys is active for one range of query blocks and fully live for a range within it. FlexAttention wants, for
each query block, the list of its partial and of its full tiles, and for its backward the same by tile. These lists
are made here by expanding the ranges, so the work and the memory follow the active tiles, not T^2.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dmabench.kernels.plan import Tiles


@dataclass(frozen=True)
class TileLists:
    """The index tensors of a BlockMask (see torch.nn.attention.flex_attention.BlockMask), int32."""

    kv_count: Tensor
    kv_index: Tensor
    full_kv_count: Tensor
    full_kv_index: Tensor
    q_count: Tensor | None = None
    q_index: Tensor | None = None
    full_q_count: Tensor | None = None
    full_q_index: Tensor | None = None

    def tensors(self) -> dict[str, Tensor | None]:
        """Under the names that BlockMask gives them."""
        return {
            "kv_num_blocks": self.kv_count,
            "kv_indices": self.kv_index,
            "full_kv_num_blocks": self.full_kv_count,
            "full_kv_indices": self.full_kv_index,
            "q_num_blocks": self.q_count,
            "q_indices": self.q_index,
            "full_q_num_blocks": self.full_q_count,
            "full_q_indices": self.full_q_index,
        }

    def to_heads(self, groups: int) -> "TileLists":
        """Repeat each key/value head's lists for its query heads."""
        if groups == 1 or self.kv_count.shape[1] == 1:
            return self
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        repeated = {name: x.repeat_interleave(groups, 1) for name, x in mine.items() if x is not None}
        return replace(self, **repeated)


def tile_lists(tiles: Tiles, query_blocks: int, by_tile: bool) -> TileLists:
    """Lists for the ranges of query blocks in `tiles`.

    Widths are rounded up to powers of two, so that a compiled FlexAttention meets few different shapes. Their
    sizes are read from the device (two synchronisations a pair of lists, two more by tile).

    Args:
        by_tile: also make the lists by tile, which only the backward reads.
    """
    # Partial query blocks of a tile: before and after its full ones.
    before, after = (tiles.first_BGN, tiles.full_first_BGN), (tiles.full_last_BGN, tiles.last_BGN)
    partial = (torch.stack([before[0], after[0]], -1), torch.stack([before[1], after[1]], -1))
    full = (tiles.full_first_BGN[..., None], tiles.full_last_BGN[..., None])
    lists = _same_width([_by_query_block(start, stop, query_blocks) for start, stop in (partial, full)])
    lists_by_tile = _same_width([_by_tile(start, stop) for start, stop in (partial, full)]) if by_tile else []
    return TileLists(*lists, *lists_by_tile)


def _same_width(lists: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Partial and full lists, flattened; torch 2.11's templates step through both with the strides of the partial."""
    width = max(index.shape[-1] for _, index in lists)
    padded = [(count, torch.nn.functional.pad(index, (0, width - index.shape[-1]))) for count, index in lists]
    return [tensor for pair in padded for tensor in pair]


def _by_query_block(start: Tensor, stop: Tensor, query_blocks: int) -> tuple[Tensor, Tensor]:
    """Each query block's tiles, ascending: counts [B, G, Q] and indices [B, G, Q, width]."""
    B, G, N, R = start.shape
    length = (stop - start).flatten()
    owner = torch.repeat_interleave(torch.arange(length.numel(), device=start.device), length)
    entry = torch.arange(owner.numel(), device=start.device)
    block = start.flatten()[owner] + entry - (length.cumsum(0) - length)[owner]
    row = owner // (N * R) * query_blocks + block
    count = torch.zeros(B * G * query_blocks, dtype=torch.int64, device=start.device)
    count.scatter_add_(0, row, torch.ones_like(row))
    by_row = torch.sort(row, stable=True)
    place = entry - (count.cumsum(0) - count)[by_row.values]
    # FlexAttention's CPU template insists on room for every tile; its CUDA templates only read the strides.
    width = N if start.device.type == "cpu" else _power_of_two(int(count.max()))
    index = start.new_zeros(B * G * query_blocks, width, dtype=torch.int32)
    index[by_row.values, place] = (owner[by_row.indices] // R % N).to(torch.int32)
    shape = (B, G, query_blocks)
    return count.to(torch.int32).view(shape), index.view(*shape, width)


def _by_tile(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Each tile's query blocks: its first range, then its second if there is one."""
    length = stop - start
    place = torch.arange(_power_of_two(int(length.sum(-1).max())), device=start.device)
    index = start[..., :1] + place
    if start.shape[-1] == 2:
        index = torch.where(place < length[..., :1], index, start[..., 1:] + place - length[..., :1])
    count = length.sum(-1)
    index = torch.where(place < count[..., None], index, 0)
    return count.to(torch.int32), index.to(torch.int32)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
