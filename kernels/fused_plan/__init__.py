"""The plan in a handful of CUDA kernels, where tensor operations need hundreds: nothing is waited for, everything has a
static size, a CUDA graph can capture it, and the same input gives the same plan.

    survivors.cu    of long sequences, which keys are alive where each stretch of positions begins
    evictions.cu    chunk by chunk, when each key stops being attended; which keys are alive when a chunk begins; what
                    the scores of each block of 128 queries are taken relative to
    key_lists.cu    for each block of queries its keys
    references.cu   what scores are taken relative to, where that is another delta or for each query
    key_order.cu    order of the keys, and tiles (for backward passes and FlexAttention)

The definitions are those of lifetimes.py, key_lists.py, key_order.py and plan.make_tiles; tests hold the two equal.
"""

import math

import torch
from torch import Tensor

from dmabench.kernels import nvrtc
from dmabench.kernels.fused_plan.launching import launch
from dmabench.kernels.key_lists import BLOCK_Q, list_width
from dmabench.kernels.key_order import SLAB
from dmabench.kernels.operators import operator

_CHUNKS = (512, 1024, 2048)
_BLOCKS_AT_ONCE = 132
"""One a multiprocessor of an H100. Chunks are as short as lets all blocks of plan_evictions run so: with 256 blocks of
1024 keys instead of 128 of 2048 a plan took 86 us instead of 69 (T = 32768, w = 1024; results/LOG.md, 2026-11-25)."""
_LONG = 65536
"""Keys from which on sequences are cut into stretches: without, each chunk passes over all that came before it."""
_WARPS_A_BLOCK = 8


def usable(x: Tensor) -> bool:
    """Whether a plan of (or from) this tensor can be made here: on CUDA, with NVRTC at hand."""
    return x.is_cuda and nvrtc.missing("cuda") is None


def _chunk(heads: int, key_len: int) -> int:
    """Positions a block of plan_evictions has."""
    for size in _CHUNKS[:-1]:
        if heads * -(-key_len // size) <= _BLOCKS_AT_ONCE:
            return size
    return _CHUNKS[-1]


def _stretch(key_len: int, window: int, chunk: int) -> int:
    """Positions of a stretch, a power of two, or 0: then there are none. Passing over the keys before each stretch and
    over those of the stretch before each of its chunks takes the least if a stretch is the root of key_len * chunk."""
    length = 1 << round(math.log2(key_len * chunk) / 2)
    return length if key_len >= _LONG and window <= length else 0


def _cut(heads: int, key_len: int, query_len: int) -> tuple[int, int, int, int]:
    """The size of a chunk, how far chunks are shifted so that they begin where blocks of queries do, how many there
    are, and the first that holds queries."""
    chunk = _chunk(heads, key_len)
    offset = key_len - query_len
    shift = -offset % chunk
    return chunk, shift, -(-(key_len + shift) // chunk), (offset + shift) // chunk


def _empty_evictions(
    delta_BGT: Tensor, window: int, key_mask_BT: Tensor | None, query_len: int, listing: bool
) -> tuple[Tensor, ...]:
    B, G, T = delta_BGT.shape
    _, _, chunks, first_listed = _cut(B * G, T, query_len)
    listed = (chunks - first_listed, min(window, T), 2) if listing else (0, 0, 2)
    return (
        delta_BGT.new_empty(B, G, T, dtype=torch.int32),
        delta_BGT.new_empty(B, G, chunks, dtype=torch.bool),
        delta_BGT.new_empty(B, G, *listed, dtype=torch.int32),
        delta_BGT.new_empty(B, G, chunks, dtype=torch.int32),
        delta_BGT.new_empty(B, G, -(-query_len // BLOCK_Q)),
    )


def _evictions(
    delta_BGT: Tensor, window: int, key_mask_BT: Tensor | None, query_len: int, listing: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """When each key stops being attended (lifetimes.eviction_times), and what the key lists start from.

    Args:
        delta_BGT: float32 [B, G, T]; key_mask_BT: bool [B, T], False is padding.
        listing: also list the keys alive at each chunk's start.

    Returns:
        evict int32 [B, G, T]; finite bool [B, G, chunks] (all must hold); alive int32 [B, G, chunks with queries,
        window, 2] (empty where not wanted) and alive_count int32 [B, G, chunks]; plan.Plan.references of this delta,
        float32 [B, G, blocks].
    """
    B, G, T = delta_BGT.shape
    window = min(window, T)
    chunk, shift, chunks, first_listed = _cut(B * G, T, query_len)
    delta = delta_BGT.detach().contiguous()
    mask = None if key_mask_BT is None else key_mask_BT.contiguous()
    evict, finite, alive, alive_count, references = _empty_evictions(delta, window, mask, query_len, listing)
    stretch = _stretch(T, window, chunk)
    kept: tuple[Tensor | None, ...] = (None, None, None)
    if stretch:
        starts = (T - 1) // stretch
        shape = (B, G, starts, -(-window // 4) * 4)
        counts = delta.new_empty(B, G, starts, dtype=torch.int32)
        kept = (delta.new_empty(shape), delta.new_empty(shape, dtype=torch.int32), counts)
        launch("survivors.cu", "plan_survivors", (starts, B * G), 1024, delta, mask, *kept, T, G, window, stretch)
    outputs = (evict, alive if listing else None, alive_count, finite, references)
    sizes = (T, G, window, shift, first_listed, stretch, T - query_len)
    inputs = (delta, mask, *kept)
    launch("evictions.cu", "plan_evictions", (chunks, B * G), 512, *inputs, *outputs, *sizes, chunk=chunk)
    return evict, finite, alive, alive_count, references


def _empty_lists(evict_BGT, alive, alive_count, window, query_len):
    B, G, T = evict_BGT.shape
    blocks = -(-query_len // BLOCK_Q)
    keys = evict_BGT.new_empty(B, G, blocks, list_width(window, T))
    return keys, evict_BGT.new_empty(B, G, blocks), evict_BGT.new_empty(B, G, blocks)


def _key_lists(
    evict_BGT: Tensor, alive: Tensor, alive_count: Tensor, window: int, query_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors of KeyLists, from what `evictions` returned with `listing`."""
    B, G, T = evict_BGT.shape
    chunk, shift, chunks, first_listed = _cut(B * G, T, query_len)
    keys, full, count = _empty_lists(evict_BGT, alive, alive_count, window, query_len)
    inputs = (evict_BGT, alive, alive_count, keys, full, count)
    sizes = (T, alive.shape[-2], shift, T - query_len, chunks, first_listed, keys.shape[-1])
    launch("key_lists.cu", "plan_key_lists", (full.shape[-1], B * G), 256, *inputs, *sizes, chunk=chunk)
    return keys, full, count


def _order(evict_BGT: Tensor, query_len: int) -> Tensor:
    """key_order.order_by_lifetime."""
    B, G, T = evict_BGT.shape
    slabs = -(-T // SLAB)
    found = torch.empty_like(evict_BGT)
    counts = evict_BGT.new_empty(B, G, slabs)
    live_count = evict_BGT.new_empty(B, G)
    grid, offset = (slabs, B * G), T - query_len
    launch("key_order.cu", "plan_count_live", grid, 512, evict_BGT, counts, T, offset)
    launch("key_order.cu", "plan_live_first", grid, 512, evict_BGT, counts, found, live_count, T, offset)
    launch("key_order.cu", "plan_halve_slabs", grid, 512, evict_BGT, live_count, found, T, offset)
    return found


def _empty_ranges(order_BGT, evict_BGT, query_len, block_q, block_k):
    B, G, T = evict_BGT.shape
    return evict_BGT.new_empty(4, B, G, -(-T // block_k))


def _tiles(order_BGT: Tensor, evict_BGT: Tensor, query_len: int, block_q: int, block_k: int) -> Tensor:
    """The ranges of plan.Tiles in their order, int32 [4, B, G, tiles]."""
    B, G, T = evict_BGT.shape
    ranges = _empty_ranges(order_BGT, evict_BGT, query_len, block_q, block_k)
    count = ranges.shape[-1]
    sizes = (T, T - query_len, block_q, block_k, count)
    grid = (-(-count // _WARPS_A_BLOCK), B * G)
    launch("key_order.cu", "plan_tiles", grid, 32 * _WARPS_A_BLOCK, evict_BGT, order_BGT, ranges, *sizes)
    return ranges


def _references(delta_BGT: Tensor, evict_BGT: Tensor, query_len: int, rows: bool) -> Tensor:
    """plan.Plan.references, float32 [B, G, blocks], or with `rows` that of each query, [B, G, query_len]."""
    B, G, T = evict_BGT.shape
    found = _empty_references(delta_BGT, evict_BGT, query_len, rows)
    of_blocks = _empty_references(delta_BGT, evict_BGT, query_len, False) if rows else found
    sizes = (T, T - query_len, of_blocks.shape[-1])
    tensors = (delta_BGT.detach().contiguous(), evict_BGT, of_blocks, found if rows else None)
    launch("references.cu", "plan_references", (1, B * G), 1024, *tensors, *sizes)
    return found


def _empty_references(delta_BGT: Tensor, evict_BGT: Tensor, query_len: int, rows: bool) -> Tensor:
    return delta_BGT.new_empty(*evict_BGT.shape[:2], query_len if rows else -(-query_len // BLOCK_Q))


evictions = operator("plan_evictions", _evictions, _empty_evictions)
key_lists = operator("plan_key_lists", _key_lists, _empty_lists)
order = operator("plan_order", _order, lambda evict_BGT, _: torch.empty_like(evict_BGT))
tiles = operator("plan_tiles", _tiles, _empty_ranges)
references = operator("plan_references", _references, _empty_references)
