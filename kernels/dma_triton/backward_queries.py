"""The gradient of the queries: the loops of the forward kernel once more, with probabilities recomputed from lse.

It also makes what the kernel of the keys' gradients reads of each query row, without a mask: rowsum(dout * out) and lse
in units of log 2, with whole blocks of 128 rows.
"""

import triton
import triton.language as tl

from dmabench.kernels.dma_triton.tiles import (
    LIST_BLOCK,
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
    dq,
    q,
    dout,
    lse_log2,
    row_sum,
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
    """dq / scale from the keys at entries [begin, stop), of which those before `middle` need no mask."""
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
            v_ND = load_rows(v, key, v_t, there, MASKED, HEAD_DIM, BLOCK_D)
            score = tl.dot(q, tl.trans(k_ND), input_precision="ieee") * scale_log2 + bias[None, :]
            if MASKED:
                live = (key[None, :] <= position[:, None]) & (position[:, None] < evicted[None, :])
                score = tl.where(live, score, float("-inf"))
            p = tl.exp2(score - lse_log2[:, None])
            dp = tl.dot(dout, tl.trans(v_ND), input_precision="ieee")
            ds = p * (dp - row_sum[:, None])
            dq = tl.dot(ds.to(k_ND.dtype), k_ND, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=("kv_heads", "groups", "query_len"))
def backward_queries_kernel(
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
    relative_lse,
    dout,
    dq,
    row_sums,
    lses_log2,
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
    do_b,
    do_h,
    do_t,
    dq_b,
    dq_h,
    dq_t,
    kv_heads,
    groups,
    query_len,
    key_len,
    list_width,
    scale,
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
    do_MD = load_at(dout + b * do_b, h * do_h + at_row * do_t, there, True, HEAD_DIM, BLOCK_D)
    o_MD = load_at(out + b * o_b, h * o_h + at_row * o_t, there, True, HEAD_DIM, BLOCK_D)
    row_sum = tl.sum(do_MD.to(tl.float32) * o_MD.to(tl.float32), 1)
    query_head = b * kv_heads * groups + h
    relative = tl.load(relative_lse + query_head * query_len + rows, mask=there, other=float("-inf"))
    # Where no key is live, and in rows past the end, every probability is 0: exp2(score - inf).
    lse_log2 = tl.where(relative == float("-inf"), float("inf"), relative)
    padded = query_head * (tl.cdiv(query_len, LIST_BLOCK) * LIST_BLOCK) + rows
    tl.store(row_sums + padded, row_sum)
    tl.store(lses_log2 + padded, lse_log2)
    head = b * kv_heads + g
    delta += head * key_len
    evict += head * key_len
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    block = row // LIST_BLOCK
    listed = head * tl.cdiv(query_len, LIST_BLOCK) + block
    reference = tl.load(references + listed)
    acc = tl.zeros([HEADS * BLOCK_M, BLOCK_D], tl.float32)

    if GATHERS:
        keys += listed * list_width
        stop = tl.load(count + listed)
        middle = tl.load(full + listed) // BLOCK_N * BLOCK_N
        acc = _add_keys(
            acc, q_MD, do_MD, lse_log2, row_sum, k, v, delta, evict, reference, keys, position, 0, middle, stop, k_t,
            v_t, key_len, scale_log2, GATHERS, AHEAD, HEAD_DIM, BLOCK_D, BLOCK_N,
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
            acc = _add_keys(
                acc, q_MD, do_MD, lse_log2, row_sum, k, v, delta, evict, reference, keys, position, begin * TILE,
                middle * TILE, stop * TILE, k_t, v_t, key_len, scale_log2, GATHERS, AHEAD, HEAD_DIM, BLOCK_D, BLOCK_N,
            )  # fmt: skip
            tile = stop

    store_at(dq + b * dq_b, h * dq_h + at_row * dq_t, there, acc * scale, HEAD_DIM, BLOCK_D)
