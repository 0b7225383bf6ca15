"""What the Triton kernels share: which program does what, rows of a tensor, runs of tiles."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LIST_BLOCK = tl.constexpr(128)
"""Query rows that one list of keys, or one step of a tile's range, stands for (key_lists.BLOCK_Q)."""
TILE = tl.constexpr(64)
"""Keys of one tile (dma_triton.TILE)."""
_RUN = tl.constexpr(64)


@triton.jit
def query_program(kv_heads, groups, query_len, BLOCK_M: tl.constexpr):
    """Batch, key/value head, query head and first query row of this program, for a grid of one dimension.

    The query heads of a group come one after the other, so that the keys which one gathers are in the cache for the
    others; the last rows come first, since they may attend to more keys than the first rows do.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(query_len, LIST_BLOCK) * (LIST_BLOCK // BLOCK_M)
    member = program % groups
    block = blocks - 1 - program // groups % blocks
    head = program // groups // blocks
    b, g = head // kv_heads, head % kv_heads
    return b.to(tl.int64), g.to(tl.int64), (g * groups + member).to(tl.int64), block * BLOCK_M


@triton.jit
def load_rows(base, row, stride, there, ROWS_MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of a tensor whose last dimension is contiguous; 0 outside of `there` and past HEAD_DIM.

    Offsets are 64-bit: at T = 1,048,576 a row's alone can pass 2^31.
    """
    column = tl.arange(0, BLOCK_D)
    pointers = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    if ROWS_MASKED:
        if HEAD_DIM == BLOCK_D:
            rows = tl.load(pointers, mask=there[:, None], other=0.0)
        else:
            rows = tl.load(pointers, mask=there[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    else:
        if HEAD_DIM == BLOCK_D:
            rows = tl.load(pointers)
        else:
            rows = tl.load(pointers, mask=(column < HEAD_DIM)[None, :], other=0.0)
    return rows


@triton.jit
def store_rows(base, row, stride, there, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store [rows, BLOCK_D] where `there`, in the dtype of the tensor."""
    column = tl.arange(0, BLOCK_D)
    pointers = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    mask = there[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_keys(keys, evict, delta, reference, entry, stop, key_len, GATHERS: tl.constexpr, MASKED: tl.constexpr):
    """Positions of the keys at `entry`, whether their rows may be read, when they are evicted, and what is added to
    their scores: delta relative to `reference`, in units of log 2.

    With GATHERS the entries are those of a list that ends at `stop`; without, they are the positions. What is not there
    is evicted at 0: no query attends to it. MASKED is False only where all entries are live.
    """
    if MASKED:
        there = entry < (stop if GATHERS else key_len)
        key = tl.load(keys + entry, mask=there, other=0) if GATHERS else entry
        evicted = tl.load(evict + key, mask=there, other=0)
        bias = tl.load(delta + key, mask=there, other=0.0)
        # Rows of keys that nobody attends to may hold anything, and 0 * NaN is NaN.
        there = evicted > key
    else:
        key = tl.load(keys + entry) if GATHERS else entry
        bias = tl.load(delta + key)
        evicted, there = key, key >= 0  # not read
    return key, there, evicted, (bias - reference) * LOG2E


@triton.jit
def next_run(first, last, full_first, full_last, tile, end, block):
    """From `tile` on: (begin, middle, stop), where tiles [begin, middle) are live for every query of `block`, those
    of [middle, stop) need the mask, and those before begin are skipped. To be continued at `stop`.

    Runs let the loops over their tiles be plain and pipelined, where a test of each tile would break the pipeline.
    """
    n = tile + tl.arange(0, _RUN)
    there = n < end
    active = tl.load(first + n, mask=there, other=0) <= block
    active &= block < tl.load(last + n, mask=there, other=0)
    full = active & (tl.load(full_first + n, mask=there, other=0) <= block)
    full &= block < tl.load(full_last + n, mask=there, other=0)
    limit = tile + _RUN
    begin = tl.min(tl.where(active, n, limit), 0)
    middle = tl.min(tl.where((n >= begin) & (full == 0), n, limit), 0)
    stop = tl.min(tl.where((n >= middle) & ((active == 0) | full), n, limit), 0)
    return begin, middle, stop
