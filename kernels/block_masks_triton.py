"""The lists of block_masks.py in one Triton kernel by query block and one by tile."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmabench.kernels.plan import Tiles

CHUNK = 1024
"""Entries that a program looks at together."""


@triton.jit
def _by_query_block_kernel(
    first_ptr,
    last_ptr,
    full_first_ptr,
    full_last_ptr,
    count_ptr,
    index_ptr,
    full_count_ptr,
    full_index_ptr,
    tiles,
    CHUNK: tl.constexpr,
):
    """One program makes the two lists of one query block of one head."""
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    row = head * tl.num_programs(0) + block
    count = tl.zeros((), tl.int32)
    full_count = tl.zeros((), tl.int32)
    for start in range(0, tiles, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        exists = tile < tiles
        at = head * tiles + tile
        first = tl.load(first_ptr + at, mask=exists, other=0)
        last = tl.load(last_ptr + at, mask=exists, other=0)
        full_first = tl.load(full_first_ptr + at, mask=exists, other=0)
        full_last = tl.load(full_last_ptr + at, mask=exists, other=0)
        full = (full_first <= block) & (block < full_last)
        partial = (first <= block) & (block < last) & ((block < full_first) | (full_last <= block))
        place = count + tl.cumsum(partial.to(tl.int32), 0) - 1
        full_place = full_count + tl.cumsum(full.to(tl.int32), 0) - 1
        tl.store(index_ptr + row * tiles + place, tile, mask=partial)
        tl.store(full_index_ptr + row * tiles + full_place, tile, mask=full)
        count += tl.sum(partial.to(tl.int32), 0)
        full_count += tl.sum(full.to(tl.int32), 0)
    tl.store(count_ptr + row, count)
    tl.store(full_count_ptr + row, full_count)
    nothing = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, tiles, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        tl.store(index_ptr + row * tiles + tile, nothing, mask=(tile >= count) & (tile < tiles))
        tl.store(full_index_ptr + row * tiles + tile, nothing, mask=(tile >= full_count) & (tile < tiles))


@triton.jit
def _by_tile_kernel(
    first_ptr,
    last_ptr,
    full_first_ptr,
    full_last_ptr,
    count_ptr,
    index_ptr,
    full_count_ptr,
    full_index_ptr,
    query_blocks,
    CHUNK: tl.constexpr,
):
    """One program makes the two lists of one tile of one head."""
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    first = tl.load(first_ptr + row)
    full_first = tl.load(full_first_ptr + row)
    full_last = tl.load(full_last_ptr + row)
    before = full_first - first
    full_count = full_last - full_first
    count = before + tl.load(last_ptr + row) - full_last
    tl.store(count_ptr + row, count)
    tl.store(full_count_ptr + row, full_count)
    for start in range(0, query_blocks, CHUNK):
        place = start + tl.arange(0, CHUNK)
        exists = place < query_blocks
        index = first + place + tl.where(place < before, 0, full_count)
        at = row * query_blocks + place
        tl.store(index_ptr + at, tl.where(place < count, index, 0), mask=exists)
        tl.store(full_index_ptr + at, tl.where(place < full_count, full_first + place, 0), mask=exists)


def by_query_block(tiles: Tiles, query_blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each query block's tiles: see block_masks_torch.by_query_block."""
    B, G, N = tiles.first_BGN.shape
    return _launch(_by_query_block_kernel, tiles, (B, G, query_blocks), N)


def by_tile(tiles: Tiles, query_blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each tile's query blocks: see block_masks_torch.by_tile."""
    B, G, N = tiles.first_BGN.shape
    return _launch(_by_tile_kernel, tiles, (B, G, N), query_blocks)


def _launch(kernel, tiles: Tiles, rows: tuple[int, int, int], width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, G, R = rows
    ranges = [x.contiguous() for x in (tiles.first_BGN, tiles.last_BGN, tiles.full_first_BGN, tiles.full_last_BGN)]
    count, full_count = (ranges[0].new_empty(rows) for _ in range(2))
    index, full_index = (ranges[0].new_empty(*rows, width) for _ in range(2))
    chunk = min(CHUNK, max(32, triton.next_power_of_2(width)))
    with torch.cuda.device_of(count):
        kernel[R, B * G](*ranges, count, index, full_count, full_index, width, CHUNK=chunk)
    return count, index, full_count, full_index
