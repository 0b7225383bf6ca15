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
def query_program(kv_heads, groups, query_len, BLOCK_M: tl.constexpr, HEADS: tl.constexpr):
    """Batch, key/value head, first query head and first query row of this program, for a grid of one dimension.

    The query heads of a group come one after the other, so that the keys which one gathers are in the cache for the
    others; the last rows come first, since they may attend to more keys than the first rows do.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(query_len, LIST_BLOCK) * (LIST_BLOCK // BLOCK_M)
    parts = groups // HEADS
    member = program % parts * HEADS
    block = blocks - 1 - program // parts % blocks
    head = program // parts // blocks
    b, g = head // kv_heads, head % kv_heads
    return b.to(tl.int64), g.to(tl.int64), (g * groups + member).to(tl.int64), block * BLOCK_M


@triton.jit
def query_rows(row, head, BLOCK_M: tl.constexpr, HEADS: tl.constexpr):
    """The query rows of a program, and the query head of each: BLOCK_M rows from `row` on of HEADS heads from `head`
    on, one head after the other. A head that is alone is a number, not one for each row."""
    at = tl.arange(0, HEADS * BLOCK_M)
    if HEADS == 1:
        rows, heads = row + at, head
    else:
        rows, heads = row + at % BLOCK_M, head + at // BLOCK_M
    return rows, heads


@triton.jit
def load_rows(base, row, stride, there, ROWS_MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of a tensor whose last dimension is contiguous; 0 outside of `there` and past HEAD_DIM.

    Offsets are 64-bit: at T = 1,048,576 a row's alone can pass 2^31.
    """
    return load_at(base, row.to(tl.int64) * stride, there, ROWS_MASKED, HEAD_DIM, BLOCK_D)


@triton.jit
def load_at(base, offset, there, ROWS_MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """As load_rows, for rows that begin at `offset`, in elements."""
    column = tl.arange(0, BLOCK_D)
    pointers = base + offset[:, None] + column[None, :]
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
    store_at(base, row.to(tl.int64) * stride, there, value, HEAD_DIM, BLOCK_D)


@triton.jit
def store_at(base, offset, there, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """As store_rows, for rows that begin at `offset`, in elements."""
    column = tl.arange(0, BLOCK_D)
    pointers = base + offset[:, None] + column[None, :]
    mask = there[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def listed_keys(keys, entry, stop):
    """Positions of the keys at `entry` of a list that ends at `stop`; 0 past its end."""
    return tl.load(keys + entry, mask=entry < stop, other=0)


@triton.jit
def load_keys(
    keys,
    evict,
    delta,
    reference,
    entry,
    stop,
    key_len,
    listed,
    GATHERS: tl.constexpr,
    AHEAD: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Positions of the keys at `entry`, whether their rows may be read, when they are evicted, and what is added to
    their scores: delta relative to `reference`, in units of log 2.

    With GATHERS the entries are those of a list that ends at `stop`; without, they are the positions. With AHEAD they
    were read before (`listed`). What is not there is evicted at 0: no query attends to it. MASKED is False only where
    all entries are live.
    """
    if MASKED:
        there = entry < (stop if GATHERS else key_len)
        key = listed if AHEAD else tl.load(keys + entry, mask=there, other=0) if GATHERS else entry
        evicted = tl.load(evict + key, mask=there, other=0)
        bias = tl.load(delta + key, mask=there, other=0.0)
        # Rows of keys that nobody attends to may hold anything, and 0 * NaN is NaN.
        there = evicted > key
    else:
        key = listed if AHEAD else tl.load(keys + entry) if GATHERS else entry
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
