"""The forward kernel: flash attention of a block of queries to the keys of its list, or to the tiles of keys in order.

Scores are kept in units of log 2, where the exponential is one instruction, and relative to a delta that the block
attends to (Plan.references): deltas may be in the millions, where float32 numbers are 0.25 apart. The backward reads
lse so too.
"""

import triton
import triton.language as tl

from dmabench.kernels.dma_triton.tiles import (
    LIST_BLOCK,
    LN2,
    TILE,
    listed_keys,
    load_at,
    load_keys,
    load_rows,
    next_run,
    query_program,
    query_rows,
    store_at,
)


@triton.jit
def _add_keys(
    acc,
    top,
    total,
    q,
    k,
    v,
    delta,
    evict,
    reference,
    keys,
    position,
    begin,
    middle,
    stop,
    k_t,
    v_t,
    key_len,
    scale_log2,
    GATHERS: tl.constexpr,
    AHEAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The online softmax over the keys at entries [begin, stop), of which those before `middle` need no mask."""
    for MASKED in tl.static_range(2):
        start = middle if MASKED else begin
        following = listed_keys(keys, start + tl.arange(0, BLOCK_N), stop) if AHEAD else 0
        for at in range(start, stop if MASKED else middle, BLOCK_N):
            entry = at + tl.arange(0, BLOCK_N)
            key, there, evicted, bias = load_keys(
                keys, evict, delta, reference, entry, stop, key_len, following, GATHERS, AHEAD, MASKED
            )
            if AHEAD:
                # Addresses that no load of the same step makes: rows can be copied as many steps ahead as fit.
                following = listed_keys(keys, entry + BLOCK_N, stop)
            k_ND = load_rows(k, key, k_t, there, MASKED, HEAD_DIM, BLOCK_D)
            score = tl.dot(q, tl.trans(k_ND), input_precision="ieee") * scale_log2 + bias[None, :]
            if MASKED:
                live = (key[None, :] <= position[:, None]) & (position[:, None] < evicted[None, :])
                score = tl.where(live, score, float("-inf"))
            highest = tl.maximum(top, tl.max(score, 1))
            # A row that has met no live key yet: its scores are all -inf, and -inf - 0 is no NaN.
            shift = tl.where(highest == float("-inf"), 0.0, highest)
            p = tl.exp2(score - shift[:, None])
            shrink = tl.exp2(top - shift)
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None]
            v_ND = load_rows(v, key, v_t, there, MASKED, HEAD_DIM, BLOCK_D)
            acc = tl.dot(p.to(v_ND.dtype), v_ND, acc, input_precision="ieee")
            top = highest
    return acc, top, total


@triton.jit(do_not_specialize=("kv_heads", "groups", "query_len"))
def forward_kernel(
    q,
    k,
    v,
    delta,
    evict,
    references,
    keys,
    full,
    count,
    first,
    last,
    full_first,
    full_last,
    out,
    lse,
    relative_lse,
    q_b,
    q_h,
    q_t,
    k_b,
    k_g,
    k_t,
    v_b,
    v_g,
    v_t,
    o_b,
    o_h,
    o_t,
    kv_heads,
    groups,
    query_len,
    key_len,
    list_width,
    scale_log2,
    GATHERS: tl.constexpr,
    AHEAD: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program for BLOCK_M query rows of HEADS heads that share keys. Strides are in elements."""
    b, g, h, row = query_program(kv_heads, groups, query_len, BLOCK_M, HEADS)
    rows, h = query_rows(row, h, BLOCK_M, HEADS)
    at_row = rows.to(tl.int64)
    there = rows < query_len
    position = rows + (key_len - query_len)
    q_MD = load_at(q + b * q_b, h * q_h + at_row * q_t, there, True, HEAD_DIM, BLOCK_D)
    head = b * kv_heads + g
    delta += head * key_len
    evict += head * key_len
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    block = row // LIST_BLOCK
    listed = head * tl.cdiv(query_len, LIST_BLOCK) + block
    reference = tl.load(references + listed)
    acc = tl.zeros([HEADS * BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([HEADS * BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([HEADS * BLOCK_M], tl.float32)

    if GATHERS:
        keys += listed * list_width
        stop = tl.load(count + listed)
        middle = tl.load(full + listed) // BLOCK_N * BLOCK_N
        acc, top, total = _add_keys(
            acc, top, total, q_MD, k, v, delta, evict, reference, keys, position, 0, middle, stop, k_t, v_t, key_len,
            scale_log2, GATHERS, AHEAD, HEAD_DIM, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    else:
        tiles = tl.cdiv(key_len, TILE)
        first += head * tiles
        last += head * tiles
        full_first += head * tiles
        full_last += head * tiles
        # No key after the last position of the program's rows.
        end = tl.cdiv(tl.minimum(row + BLOCK_M + (key_len - query_len), key_len), TILE)
        tile = 0
        while tile < end:
            begin, middle, stop = next_run(first, last, full_first, full_last, tile, end, block)
            acc, top, total = _add_keys(
                acc, top, total, q_MD, k, v, delta, evict, reference, keys, position, begin * TILE,
                middle * TILE, stop * TILE, k_t, v_t, key_len, scale_log2, GATHERS, AHEAD, HEAD_DIM, BLOCK_D, BLOCK_N,
            )  # fmt: skip
            tile = stop

    empty = total == 0.0
    o_MD = acc / tl.where(empty, 1.0, total)[:, None]
    store_at(out + b * o_b, h * o_h + at_row * o_t, there, o_MD, HEAD_DIM, BLOCK_D)
    # In units of log 2, as scores are: changing units and back would cost what being relative gains.
    relative = tl.where(empty, float("-inf"), top + tl.log2(tl.where(empty, 1.0, total)))
    row_in_all = (b * kv_heads * groups + h) * query_len + rows
    tl.store(relative_lse + row_in_all, relative, mask=there)
    tl.store(lse + row_in_all, relative * LN2 + reference, mask=there)
