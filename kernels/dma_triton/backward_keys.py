"""The gradients of keys, values and delta: a program keeps some keys and passes over the queries that attend to them.

Keys come in the plan's order, where those of a tile have similar lifetimes. Sums stay in registers, over the query
heads of the group too: no atomics, the same result each time. Every key is in some tile, so everything is written.
"""

import triton
import triton.language as tl

from dmabench.kernels.dma_triton.tiles import LIST_BLOCK, LOG2E, TILE, load_rows, store_rows


@triton.jit
def _add_queries(
    dk,
    dv,
    ddelta,
    k,
    v,
    delta,
    key,
    evicted,
    q,
    dout,
    lse_log2,
    row_sums,
    references,
    first,
    full_first,
    full_last,
    last,
    q_t,
    do_t,
    query_len,
    offset,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dk / scale, dv and ddelta from query rows [first, last) of one head; [full_first, full_last) need no mask."""
    for part in tl.static_range(3):
        start = full_first if part == 1 else (first if part == 0 else full_last)
        stop = full_last if part == 1 else (full_first if part == 0 else last)
        for at in range(start, stop, BLOCK_M):
            rows = at + tl.arange(0, BLOCK_M)
            # Rows past the end have lse = inf: whatever is read for them, their probabilities are 0.
            real = tl.minimum(rows, query_len - 1)
            q_MD = load_rows(q, real, q_t, real, False, HEAD_DIM, BLOCK_D)
            bias = (delta - tl.load(references + at // LIST_BLOCK)) * LOG2E
            score = tl.dot(k, tl.trans(q_MD), input_precision="ieee") * scale_log2 + bias[:, None]
            if part != 1:
                position = rows + offset
                live = (key[:, None] <= position[None, :]) & (position[None, :] < evicted[:, None])
                score = tl.where(live, score, float("-inf"))
            p = tl.exp2(score - tl.load(lse_log2 + rows)[None, :])
            do_MD = load_rows(dout, real, do_t, real, False, HEAD_DIM, BLOCK_D)
            dv = tl.dot(p.to(do_MD.dtype), do_MD, dv, input_precision="ieee")
            dp = tl.dot(v, tl.trans(do_MD), input_precision="ieee")
            ds = p * (dp - tl.load(row_sums + rows)[None, :])
            ddelta += tl.sum(ds, 1)
            dk = tl.dot(ds.to(q_MD.dtype), q_MD, dk, input_precision="ieee")
    return dk, dv, ddelta


@triton.jit
def _range(first, full_first, full_last, last, tile, tiles, BLOCK_N: tl.constexpr):
    """The blocks of queries that a program's keys meet, [first, last), and those that need no mask,
    [full_first, full_last); of several tiles the hull of the one and what they share of the other."""
    if BLOCK_N <= TILE:
        begin, end = tl.load(first + tile), tl.load(last + tile)
        full_begin, full_end = tl.load(full_first + tile), tl.load(full_last + tile)
    else:
        these = tile + tl.arange(0, BLOCK_N // TILE)
        there = these < tiles
        lasts = tl.load(last + these, mask=there, other=0)
        end = tl.max(lasts, 0)
        # A tile of dead keys ends at 0 and begins nowhere. It has keys that no query attends to, so nothing is full.
        begin = tl.min(tl.where(lasts > 0, tl.load(first + these, mask=there, other=0), end), 0)
        full_begin = tl.max(tl.load(full_first + these, mask=there, other=0), 0)
        full_end = tl.min(tl.load(full_last + these, mask=there, other=0), 0)
        nothing_full = full_end <= full_begin
        full_begin, full_end = tl.where(nothing_full, begin, full_begin), tl.where(nothing_full, begin, full_end)
    return begin, full_begin, full_end, end


@triton.jit(do_not_specialize=("kv_heads", "groups", "query_len"))
def backward_keys_kernel(
    q,
    k,
    v,
    delta,
    evict,
    references,
    order,
    first,
    last,
    full_first,
    full_last,
    lse_log2,
    row_sums,
    dout,
    dk,
    dv,
    ddelta,
    q_b,
    q_h,
    q_t,
    k_b,
    k_g,
    k_t,
    v_b,
    v_g,
    v_t,
    do_b,
    do_h,
    do_t,
    dk_b,
    dk_g,
    dk_t,
    dv_b,
    dv_g,
    dv_t,
    kv_heads,
    groups,
    query_len,
    key_len,
    scale,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program for BLOCK_N keys of one key/value head. Strides are in elements, by batch, head and row."""
    blocks = tl.cdiv(key_len, BLOCK_N)
    entry = tl.program_id(0) % blocks * BLOCK_N
    head = (tl.program_id(0) // blocks).to(tl.int64)
    b, g = head // kv_heads, head % kv_heads
    tiles = tl.cdiv(key_len, TILE)
    begin, full_begin, full_end, end = _range(
        first + head * tiles, full_first + head * tiles, full_last + head * tiles, last + head * tiles,
        entry // TILE, tiles, BLOCK_N,
    )  # fmt: skip
    # In query rows, of which the last block may have fewer than it stands for.
    row_first = begin * LIST_BLOCK
    row_last = tl.minimum(end * LIST_BLOCK, query_len)
    row_full_first = full_begin * LIST_BLOCK
    row_full_last = tl.minimum(full_end * LIST_BLOCK, query_len)

    entries = entry + tl.arange(0, BLOCK_N)
    listed = entries < key_len
    key = tl.load(order + head * key_len + entries, mask=listed, other=0)
    evicted = tl.load(evict + head * key_len + key, mask=listed, other=0)
    delta_N = tl.load(delta + head * key_len + key, mask=listed, other=0.0)
    references += head * tl.cdiv(query_len, LIST_BLOCK)
    # Rows of keys that nobody attends to may hold anything, and 0 * NaN is NaN.
    attended = evicted > key
    k_ND = load_rows(k + b * k_b + g * k_g, key, k_t, attended, True, HEAD_DIM, BLOCK_D)
    v_ND = load_rows(v + b * v_b + g * v_g, key, v_t, attended, True, HEAD_DIM, BLOCK_D)
    dk_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    ddelta_N = tl.zeros([BLOCK_N], tl.float32)

    for member in range(groups):
        h = g * groups + member
        q_head, do_head = q + b * q_b + h * q_h, dout + b * do_b + h * do_h
        in_all = (b * kv_heads * groups + h) * (tl.cdiv(query_len, LIST_BLOCK) * LIST_BLOCK)
        dk_ND, dv_ND, ddelta_N = _add_queries(
            dk_ND, dv_ND, ddelta_N, k_ND, v_ND, delta_N, key, evicted, q_head, do_head, lse_log2 + in_all,
            row_sums + in_all, references, row_first, row_full_first, row_full_last, row_last, q_t, do_t, query_len,
            key_len - query_len, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_M,
        )  # fmt: skip

    store_rows(dk + b * dk_b + g * dk_g, key, dk_t, listed, dk_ND * scale, HEAD_DIM, BLOCK_D)
    store_rows(dv + b * dv_b + g * dv_g, key, dv_t, listed, dv_ND, HEAD_DIM, BLOCK_D)
    tl.store(ddelta + head * key_len + key, ddelta_N, mask=listed)
