"""The gradients of keys, values and delta: a program keeps some keys and passes over the queries that attend to them.

Keys come in the plan's order, where those of a tile have similar lifetimes. Sums stay in registers, over the query
heads of the group too: no atomics, the same result each time. Every key is in some tile, so everything is written.

Tiles differ in their work up to a hundred times. So a program takes a tile (EVEN = False), or all programs share the
steps of all tiles evenly, as in Stream-K (arXiv 2301.03598), and `join_kernel` adds up tiles that several have shared,
in their order: the result depends on the number of programs, never on their timing.
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


@triton.jit
def tile_of(ends, tiles, step):
    """The tile that a step belongs to: the first whose steps end after it."""
    low, high = tiles * 0, tiles - 1
    while low < high:
        middle = (low + high) // 2
        after = tl.load(ends + middle) > step
        low = tl.where(after, low, middle + 1)
        high = tl.where(after, middle, high)
    return low


@triton.jit
def first_step(ends, tiles, program):
    """The first step of a program among those of all tiles."""
    return tl.load(ends + tiles - 1) * program // tl.num_programs(0)


@triton.jit
def _part_of(parts, place, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where the sums of a part of a tile lie, float32: of dk / scale and dv [BLOCK_N, BLOCK_D], and ddelta [BLOCK_N].
    A program has two places: for the tile that it begins in the middle of, and for the one that it does not finish."""
    dk = parts + place * (BLOCK_N * (2 * BLOCK_D + 1))
    dv = dk + BLOCK_N * BLOCK_D
    return dk, dv, dv + BLOCK_N * BLOCK_D


@triton.jit(do_not_specialize=("kv_heads", "groups", "query_len", "all_tiles"))
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
    ends,
    lse_log2,
    row_sums,
    dout,
    dk,
    dv,
    ddelta,
    parts,
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
    all_tiles,
    scale,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Of `all_tiles` tiles of BLOCK_N keys, one a program, or the program's share of their steps: blocks of LIST_BLOCK
    queries of one head, after another of the next that shares the keys. Strides are in elements, by batch, head and
    row."""
    if EVEN:
        step = first_step(ends, all_tiles, tl.program_id(0))
        stop = first_step(ends, all_tiles, tl.program_id(0) + 1)
        number = tile_of(ends, all_tiles, step)
    else:
        step, stop, number = 0, 1, tl.program_id(0)
    while step < stop:
        blocks = tl.cdiv(key_len, BLOCK_N)
        entry = number % blocks * BLOCK_N
        head = (number // blocks).to(tl.int64)
        b, g = head // kv_heads, head % kv_heads
        tiles = tl.cdiv(key_len, TILE)
        begin, full_begin, full_end, end = _range(
            first + head * tiles, full_first + head * tiles, full_last + head * tiles, last + head * tiles,
            entry // TILE, tiles, BLOCK_N,
        )  # fmt: skip
        # Of a tile of dead keys, too, somebody has a step: its zeros are written.
        length = tl.maximum(end - begin, 1)
        if EVEN:
            begins = tl.load(ends + number - 1, mask=number > 0, other=0)
            ending = tl.load(ends + number)
            own_first = (step - begins).to(tl.int32)
            own_last = (tl.minimum(stop, ending) - begins).to(tl.int32)
            whole = (step == begins) & (ending <= stop)
            step = tl.minimum(stop, ending)
        else:
            own_first, own_last, whole, step = 0, groups * length, True, stop

        entries = entry + tl.arange(0, BLOCK_N)
        listed = entries < key_len
        key = tl.load(order + head * key_len + entries, mask=listed, other=0)
        evicted = tl.load(evict + head * key_len + key, mask=listed, other=0)
        delta_N = tl.load(delta + head * key_len + key, mask=listed, other=0.0)
        # Rows of keys that nobody attends to may hold anything, and 0 * NaN is NaN.
        attended = evicted > key
        k_ND = load_rows(k + b * k_b + g * k_g, key, k_t, attended, True, HEAD_DIM, BLOCK_D)
        v_ND = load_rows(v + b * v_b + g * v_g, key, v_t, attended, True, HEAD_DIM, BLOCK_D)
        dk_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        ddelta_N = tl.zeros([BLOCK_N], tl.float32)

        for member in range(own_first // length, tl.cdiv(own_last, length)):
            # In blocks of queries, and of them those that need no mask; then in rows, of which the last block may have
            # fewer than it stands for.
            own_begin = begin + tl.maximum(own_first - member * length, 0)
            own_end = tl.minimum(begin + own_last - member * length, end)
            own_full = tl.minimum(tl.maximum(full_begin, own_begin), own_end)
            own_full_end = tl.maximum(tl.minimum(full_end, own_end), own_full)
            h = g * groups + member
            q_head, do_head = q + b * q_b + h * q_h, dout + b * do_b + h * do_h
            in_all = (b * kv_heads * groups + h) * (tl.cdiv(query_len, LIST_BLOCK) * LIST_BLOCK)
            dk_ND, dv_ND, ddelta_N = _add_queries(
                dk_ND, dv_ND, ddelta_N, k_ND, v_ND, delta_N, key, evicted, q_head, do_head, lse_log2 + in_all,
                row_sums + in_all, references + head * tl.cdiv(query_len, LIST_BLOCK), own_begin * LIST_BLOCK,
                own_full * LIST_BLOCK, tl.minimum(own_full_end * LIST_BLOCK, query_len),
                tl.minimum(own_end * LIST_BLOCK, query_len), q_t, do_t, query_len, key_len - query_len, scale_log2,
                HEAD_DIM, BLOCK_D, BLOCK_M,
            )  # fmt: skip

        if whole:
            store_rows(dk + b * dk_b + g * dk_g, key, dk_t, listed, dk_ND * scale, HEAD_DIM, BLOCK_D)
            store_rows(dv + b * dv_b + g * dv_g, key, dv_t, listed, dv_ND, HEAD_DIM, BLOCK_D)
            tl.store(ddelta + head * key_len + key, ddelta_N, mask=listed)
        elif EVEN:
            place = tl.program_id(0) * 2 + tl.where(own_first > 0, 0, 1)
            dk_part, dv_part, ddelta_part = _part_of(parts, place, BLOCK_N, BLOCK_D)
            within = tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
            tl.store(dk_part + within, dk_ND)
            tl.store(dv_part + within, dv_ND)
            tl.store(ddelta_part + tl.arange(0, BLOCK_N), ddelta_N)
        number += 1


@triton.jit(do_not_specialize=("kv_heads", "all_tiles"))
def join_kernel(
    order,
    ends,
    parts,
    dk,
    dv,
    ddelta,
    dk_b,
    dk_g,
    dk_t,
    dv_b,
    dv_g,
    dv_t,
    kv_heads,
    key_len,
    all_tiles,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradients of the tile that a program of backward_keys_kernel has begun and not finished, from its sums and
    those of the programs after it. Launched with as many programs."""
    program = tl.program_id(0)
    start, stop = first_step(ends, all_tiles, program), first_step(ends, all_tiles, program + 1)
    number = tile_of(ends, all_tiles, stop - 1)
    begins, ending = tl.load(ends + number - 1, mask=number > 0, other=0), tl.load(ends + number)
    if (start <= begins) & (stop < ending):
        within = tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        dk_part, dv_part, ddelta_part = _part_of(parts, program * 2 + 1, BLOCK_N, BLOCK_D)
        dk_ND, dv_ND = tl.load(dk_part + within), tl.load(dv_part + within)
        ddelta_N = tl.load(ddelta_part + tl.arange(0, BLOCK_N))
        # Up to the program whose share ends where the tile does, or later. Not in a while loop: triton 3.6 can carry no
        # blocks in one.
        until = tl.cdiv(ending * tl.num_programs(0), tl.load(ends + all_tiles - 1)).to(tl.int32)
        for after in range(program + 1, until):
            dk_part, dv_part, ddelta_part = _part_of(parts, after * 2, BLOCK_N, BLOCK_D)
            dk_ND += tl.load(dk_part + within)
            dv_ND += tl.load(dv_part + within)
            ddelta_N += tl.load(ddelta_part + tl.arange(0, BLOCK_N))
        blocks = tl.cdiv(key_len, BLOCK_N)
        entries = number % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        listed = entries < key_len
        head = (number // blocks).to(tl.int64)
        b, g = head // kv_heads, head % kv_heads
        key = tl.load(order + head * key_len + entries, mask=listed, other=0)
        store_rows(dk + b * dk_b + g * dk_g, key, dk_t, listed, dk_ND * scale, HEAD_DIM, BLOCK_D)
        store_rows(dv + b * dv_b + g * dv_g, key, dv_t, listed, dv_ND, HEAD_DIM, BLOCK_D)
        tl.store(ddelta + head * key_len + key, ddelta_N, mask=listed)
