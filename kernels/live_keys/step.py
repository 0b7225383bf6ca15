"""One decoding step in two Triton kernels: the new key finds its slot, and attention runs over the live keys.

The first kernel splits the slots of a head among programs, so that one sequence can fill a card (flash decoding); the
query heads of a group share what is read. Every program of a head finds for itself which key goes. The new key's row
goes to that slot and the new key itself is attended to from where it came, so that no program needs another's writes.
What those searches read (delta, position, count) is written only after all of them: by the second kernel, which also
adds up the splits.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmabench.kernels.operators import operator

LOG2E = tl.constexpr(math.log2(math.e))
LAST = tl.constexpr(2**63 - 1)
"""Later than every rank."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256
MAX_SPLITS = 64
PROGRAMS_PER_SM = 3
"""As many splits as give each multiprocessor this many programs: enough loads in flight, little to add up."""
SEARCHED = 1024
"""Slots looked at together for the key that goes."""


@triton.jit
def _order_bits(delta):
    """int32 ordered like float32, with -0.0 equal to +0.0. Not for NaN."""
    bits = tl.where(delta == 0.0, 0.0, delta).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _find_slot(delta, position, count, window, new_delta, usable, SEARCHED: tl.constexpr):
    """The slot that the new key takes: a free one, or that of the smallest (delta, position) if the new key outranks
    it, as it does at equal deltas; -1 where it is dead on arrival."""
    lowest = tl.full([SEARCHED], LAST, tl.int64)
    lowest_slot = tl.zeros([SEARCHED], tl.int32)
    for start in range(0, tl.where(count < window, 0, window), SEARCHED):
        slot = start + tl.arange(0, SEARCHED)
        there = slot < window
        bits = _order_bits(tl.load(delta + slot, mask=there, other=0.0))
        rank = (bits.to(tl.int64) << 32) | tl.load(position + slot, mask=there, other=0).to(tl.int64)
        lower = there & (rank < lowest)
        lowest = tl.where(lower, rank, lowest)
        lowest_slot = tl.where(lower, slot, lowest_slot)
    rank = tl.min(lowest, 0)
    slot = tl.min(tl.where(lowest == rank, lowest_slot, window), 0)
    free = count < window
    stays = usable & (free | (_order_bits(new_delta) >= (rank >> 32).to(tl.int32)))
    return tl.where(stays, tl.where(free, count, slot), -1)


@triton.jit
def _commit(delta, position, count, seen, slot, new_delta):
    """What the search reads, brought up to date for one head."""
    held = tl.load(count)
    at = tl.load(seen)
    tl.store(delta + slot, new_delta, mask=slot >= 0)
    tl.store(position + slot, at, mask=slot >= 0)
    tl.store(count, held + (slot == held).to(tl.int32))
    tl.store(seen, at + 1)


@triton.jit
def split_kernel(
    q,
    new_k,
    new_v,
    new_delta,
    new_mask,
    k,
    v,
    delta,
    position,
    count,
    seen,
    out,
    part_out,
    part_top,
    part_total,
    found_slot,
    q_b,
    q_h,
    new_k_b,
    new_k_g,
    new_v_b,
    new_v_g,
    new_delta_b,
    new_delta_g,
    new_mask_b,
    kv_heads,
    window,
    split_size,
    scale_log2,
    UPDATE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEARCHED: tl.constexpr,
):
    """Slots [split * split_size, + split_size) of one head, for the GROUPS query heads that share them."""
    split = tl.program_id(0) % SPLITS
    head = (tl.program_id(0) // SPLITS).to(tl.int64)
    b, g = head // kv_heads, head % kv_heads
    k += head * window * HEAD_DIM
    v += head * window * HEAD_DIM
    delta += head * window
    position += head * window
    held = tl.load(count + head)

    member = tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_D)
    real = (member < GROUPS)[:, None] & (column < HEAD_DIM)[None, :]
    q_rows = q + b * q_b + (g * GROUPS + member)[:, None] * q_h + column[None, :]
    q_HD = tl.load(q_rows, mask=real, other=0.0)

    slot = -1
    bias = 0.0
    if UPDATE:
        bias = tl.load(new_delta + b * new_delta_b + g * new_delta_g)
        usable = bias == bias
        if HAS_MASK:
            usable &= tl.load(new_mask + b * new_mask_b) != 0
        slot = _find_slot(delta, position, held, window, bias, usable, SEARCHED)
        # The first split attends to the new key.
        mine = (split == 0) & (slot >= 0)
        there = column < tl.where(mine, HEAD_DIM, 0)
        k_D = tl.load(new_k + b * new_k_b + g * new_k_g + column, mask=there, other=0.0)
        v_D = tl.load(new_v + b * new_v_b + g * new_v_g + column, mask=there, other=0.0)
        row = slot.to(tl.int64) * HEAD_DIM + column
        tl.store(k + row, k_D, mask=there)
        tl.store(v + row, v_D, mask=there)
        own = tl.sum(q_HD.to(tl.float32) * k_D.to(tl.float32)[None, :], 1) * scale_log2 + bias * LOG2E
        top = tl.where(mine, own, float("-inf"))
        total = tl.where(top == float("-inf"), 0.0, 1.0)
        acc = total[:, None] * v_D.to(tl.float32)[None, :]
    else:
        top = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)

    first = split * split_size
    stop = tl.minimum(first + split_size, held)
    for at in range(first, stop, BLOCK_N):
        n = at + tl.arange(0, BLOCK_N)
        # Rows of free slots and of the key that goes are not read: 0 * NaN is NaN.
        live = (n < stop) & (n != slot)
        rows = live[:, None] & (column < HEAD_DIM)[None, :]
        k_ND = tl.load(k + n.to(tl.int64)[:, None] * HEAD_DIM + column[None, :], mask=rows, other=0.0)
        delta_N = tl.load(delta + n, mask=live, other=0.0)
        score = tl.dot(q_HD, tl.trans(k_ND), input_precision="ieee") * scale_log2 + (delta_N * LOG2E)[None, :]
        score = tl.where(live[None, :], score, float("-inf"))
        highest = tl.maximum(top, tl.max(score, 1))
        # No live key yet: all scores are -inf, and -inf - 0 is no NaN.
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.exp2(score - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(p, 1)
        v_ND = tl.load(v + n.to(tl.int64)[:, None] * HEAD_DIM + column[None, :], mask=rows, other=0.0)
        acc = tl.dot(p.to(v_ND.dtype), v_ND, acc * shrink[:, None], input_precision="ieee")
        top = highest

    # [B * G, GROUPS] is [B, H].
    q_head = head * GROUPS + member
    if SPLITS == 1:
        mean = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + q_head[:, None] * HEAD_DIM + column[None, :], mean.to(out.dtype.element_ty), mask=real)
        if UPDATE:
            tl.debug_barrier()  # every thread has read what is now written
            _commit(delta, position, count + head, seen + head, slot, bias)
    else:
        part = q_head * SPLITS + split
        tl.store(part_out + part[:, None] * HEAD_DIM + column[None, :], acc, mask=real)
        tl.store(part_top + part, top, mask=member < GROUPS)
        tl.store(part_total + part, total, mask=member < GROUPS)
        if UPDATE:
            tl.store(found_slot + head, slot, mask=split == 0)


@triton.jit
def combine_kernel(
    out,
    part_out,
    part_top,
    part_total,
    found_slot,
    new_delta,
    delta,
    position,
    count,
    seen,
    new_delta_b,
    new_delta_g,
    kv_heads,
    window,
    UPDATE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add up the splits of one query head; the first of a group also writes down what the new key replaced."""
    q_head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    column = tl.arange(0, BLOCK_D)
    part = q_head * SPLITS + split
    there = split < SPLITS
    top = tl.load(part_top + part, mask=there, other=float("-inf"))
    total = tl.load(part_total + part, mask=there, other=0.0)
    rows = there[:, None] & (column < HEAD_DIM)[None, :]
    part_SD = tl.load(part_out + part[:, None] * HEAD_DIM + column[None, :], mask=rows, other=0.0)
    highest = tl.max(top, 0)
    weight = tl.exp2(top - tl.where(highest == float("-inf"), 0.0, highest))
    denominator = tl.sum(weight * total, 0)
    mean = tl.sum(weight[:, None] * part_SD, 0) / tl.where(denominator == 0.0, 1.0, denominator)
    tl.store(out + q_head * HEAD_DIM + column, mean.to(out.dtype.element_ty), mask=column < HEAD_DIM)
    if UPDATE:
        head = q_head // GROUPS
        value = tl.load(new_delta + head // kv_heads * new_delta_b + head % kv_heads * new_delta_g)
        slot = tl.load(found_slot + head)
        if q_head % GROUPS == 0:
            _commit(delta + head * window, position + head * window, count + head, seen + head, slot, value)


def takes(q: Tensor, delta: Tensor) -> bool:
    """Whether these kernels take such a query and such deltas."""
    return q.is_cuda and q.dtype in DTYPES and q.shape[-1] <= MAX_HEAD_DIM and delta.dtype == torch.float32


def splits(heads: int, window: int, block_n: int, multiprocessors: int) -> int:
    """Among how many programs the slots of each of `heads` key/value heads (batch included) are split, evenly."""
    blocks = -(-window // block_n)
    wanted = min(-(-PROGRAMS_PER_SM * multiprocessors // heads), MAX_SPLITS)
    return -(-blocks // -(-blocks // wanted))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def blocks(head_dim: int, itemsize: int) -> tuple[int, int]:
    """Keys at a time, and stages of the pipeline: k and v of all stages take at most 96 KiB of shared memory."""
    block_d = max(16, triton.next_power_of_2(head_dim))
    block_n = max(16, min(64, (16 << 10) // (block_d * itemsize)))
    return block_n, min(3, (96 << 10) // (2 * block_n * block_d * itemsize))


def step(
    q: Tensor,
    new_k: Tensor,
    new_v: Tensor,
    new_delta: Tensor,
    new_mask: Tensor | None,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    position: Tensor,
    count: Tensor,
    seen: Tensor,
    scale: float,
) -> Tensor:
    """Insert one key for each head, in place, and attend: what live_keys_torch.insert and attend do.

    Args:
        q: [B, H, 1, D]; new_k, new_v: [B, G, 1, D]; new_delta: [B, G, 1]; new_mask: bool [B, 1] or None.
        the rest: the buffers of LiveKeys, contiguous.
    """
    return _launch(q, (new_k, new_v, new_delta, new_mask), (k, v, delta, position, count, seen), scale)


def attend(q: Tensor, k: Tensor, v: Tensor, delta: Tensor, count: Tensor, scale: float) -> Tensor:
    """Attention of one query to the first `count` slots of each head: out [B, H, 1, D]."""
    return _launch(q, None, (k, v, delta, count, count, count), scale)


def _launch(q: Tensor, new: tuple[Tensor, Tensor, Tensor, Tensor | None] | None, buffers, scale: float) -> Tensor:
    k, v, delta, position, count, seen = buffers
    (B, G, window, D), H = k.shape, q.shape[1]
    groups, block_d = H // G, max(16, triton.next_power_of_2(D))
    block_n, stages = blocks(D, k.element_size())
    parts = splits(B * G, window, block_n, _multiprocessors(q.device))
    split_size = -(-window // (parts * block_n)) * block_n
    q = q if q.stride(-1) == 1 else q.contiguous()
    out = torch.empty(B, H, 1, D, dtype=q.dtype, device=q.device)
    # What the kernels do not touch is given as `out`.
    part_out = part_top = part_total = slot = new_k = new_v = new_delta = new_mask = out
    if parts > 1:
        part_out = torch.empty(B, H, parts, D, dtype=torch.float32, device=q.device)
        part_top, part_total = torch.empty(2, B, H, parts, dtype=torch.float32, device=q.device)
        slot = torch.empty(B, G, dtype=torch.int32, device=q.device)
    has_mask = new is not None and new[3] is not None
    if new is not None:
        new_k, new_v = (x if x.stride(-1) == 1 else x.contiguous() for x in new[:2])
        new_delta, new_mask = new[2], new[3] if new[3] is not None else out
    common = {"UPDATE": new is not None, "SPLITS": parts, "GROUPS": groups, "HEAD_DIM": D, "BLOCK_D": block_d}
    with torch.cuda.device_of(q):
        split_kernel[(B * G * parts,)](
            q, new_k, new_v, new_delta, new_mask, k, v, delta, position, count, seen,
            out, part_out, part_top, part_total, slot,
            *q.stride()[:2], *new_k.stride()[:2], *new_v.stride()[:2], *new_delta.stride()[:2], new_mask.stride(0),
            G, window, split_size, scale * math.log2(math.e),
            **common, HAS_MASK=has_mask, BLOCK_H=max(16, triton.next_power_of_2(groups)), BLOCK_N=block_n,
            SEARCHED=min(SEARCHED, triton.next_power_of_2(window)), num_warps=4, num_stages=stages,
        )  # fmt: skip
        if parts > 1:
            combine_kernel[(B * H,)](
                out, part_out, part_top, part_total, slot, new_delta, delta, position, count, seen,
                *new_delta.stride()[:2], G, window, **common, BLOCK_S=triton.next_power_of_2(parts), num_warps=4,
            )  # fmt: skip
    return out


def _empty(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


run_step = operator("live_keys_step", step, _empty, mutates=("k", "v", "delta", "position", "count", "seen"))
run_attend = operator("live_keys_attend", attend, _empty)
