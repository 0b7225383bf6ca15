"""The Triton kernels of importance, and what they are compiled for. importance_triton.py launches them."""

from functools import cache

import torch
import triton
import triton.language as tl

BLOCK_T = 64
"""Rows a program of the forward, always: with another number the compiler may take another instruction, and sum in
another order."""
FORWARD_OPTIONS = {"num_warps": 4, "num_stages": 4}


@triton.jit
def _log1p(x):
    """For x in [0, 1], to the last bit but one; the error of rounding 1 + x cancels (Kahan)."""
    y = 1.0 + x
    rounded_off = y == 1.0
    return tl.where(rounded_off, x, tl.log(y) * (x / tl.where(rounded_off, 1.0, y - 1.0)))


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def forward_kernel(
    v_ptr,
    weight_ptr,
    gate_ptr,
    delta_ptr,
    sample_ptr,
    T,
    v_stride_b,
    v_stride_g,
    v_stride_t,
    G: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,  # columns of a product, at least G
    EXP: tl.constexpr,
    KEEP_SAMPLE: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_T rows of one batch, all heads."""
    blocks = tl.cdiv(T, BLOCK_T)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_T
    row = tl.arange(0, BLOCK_T)
    head = tl.arange(0, HEADS)
    exists = start + row < T
    v_ptr += b * v_stride_b + start * v_stride_t
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    high = tl.zeros((BLOCK_T, HEADS), tl.float32)
    low = tl.zeros((BLOCK_T, HEADS), tl.float32)
    for step in range(G * CHUNKS):
        g = step // CHUNKS
        d = step % CHUNKS * BLOCK_D + tl.arange(0, BLOCK_D)
        of_head = v_ptr + tl.cast(g, tl.int64) * v_stride_g
        mask = exists[:, None] & (d < D)[None, :]
        v = tl.load(of_head + row[:, None] * v_stride_t + d[None, :], mask=mask, other=0.0)
        mask = (d < D)[:, None] & (head < G)[None, :]
        w = tl.load(weight_ptr + (g * D + d)[:, None] * G + head[None, :], mask=mask, other=0.0).to(tl.float32)
        if v.dtype == tl.float32:
            high = tl.dot(v, w, high, input_precision="ieee")
        else:
            # Three pieces in the type of the values hold all bits of a weight, and products of them are exact.
            # SCALE keeps the lower two out of float16's subnormal numbers.
            first = w.to(v.dtype)
            rest = (w - first.to(tl.float32)) * SCALE
            second = rest.to(v.dtype)
            third = (rest - second.to(tl.float32)).to(v.dtype)
            high = tl.dot(v, first, high)
            low = tl.dot(v, second, low)
            low = tl.dot(v, third, low)
    sample = high + low * (1.0 / SCALE)
    gate = tl.load(gate_ptr + head, mask=head < G, other=0.0).to(tl.float32)
    delta = gate[None, :] * _softplus(sample)
    if EXP:
        delta = tl.exp(delta)
    at = (b * G + head)[None, :] * T + (start + row)[:, None]
    mask = exists[:, None] & (head < G)[None, :]
    tl.store(delta_ptr + at, delta, mask=mask)
    if KEEP_SAMPLE:
        tl.store(sample_ptr + at, sample, mask=mask)


@triton.jit
def backward_kernel(
    d_delta_ptr,
    v_ptr,
    weight_ptr,
    gate_ptr,
    sample_ptr,
    dv_ptr,
    d_weight_ptr,
    d_gate_ptr,
    T,
    splits,
    blocks_each,
    v_stride_b,
    v_stride_g,
    v_stride_t,
    dv_stride_b,
    dv_stride_g,
    dv_stride_t,
    G: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    EXP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D channels of one head, over `blocks_each` blocks of rows of one batch."""
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    part = tl.program_id(0) // (G * CHUNKS)
    g = tl.program_id(0) // CHUNKS % G
    b = (part // splits).to(tl.int64)
    row = tl.arange(0, BLOCK_T)
    head = tl.arange(0, HEADS)
    d = tl.program_id(0) % CHUNKS * BLOCK_D + tl.arange(0, BLOCK_D)
    gate = tl.load(gate_ptr + head, mask=head < G, other=0.0).to(tl.float32)
    w_mask = (head < G)[:, None] & (d < D)[None, :]
    w = tl.load(weight_ptr + (g * D + d)[None, :] * G + head[:, None], mask=w_mask, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_D, HEADS), tl.float32)
    d_gate = tl.zeros((HEADS,), tl.float32)
    for i in range(blocks_each):
        start = (part % splits * blocks_each + i).to(tl.int64) * BLOCK_T
        exists = start + row < T
        at = (b * G + head)[None, :] * T + (start + row)[:, None]
        row_mask = exists[:, None] & (head < G)[None, :]
        sample = tl.load(sample_ptr + at, mask=row_mask, other=0.0)
        d_strength = tl.load(d_delta_ptr + at, mask=row_mask, other=0.0)
        softplus = _softplus(sample)
        if EXP:
            d_strength *= tl.exp(gate[None, :] * softplus)
        d_gate += tl.sum(d_strength * softplus, 0)
        d_sample = d_strength * gate[None, :] / (1.0 + tl.exp(-sample))
        v_mask = exists[:, None] & (d < D)[None, :]
        of_v = v_ptr + b * v_stride_b + g.to(tl.int64) * v_stride_g + start * v_stride_t
        v = tl.load(of_v + row[:, None] * v_stride_t + d[None, :], mask=v_mask, other=0.0)
        # tf32x3 is float32 but for its last bits; the two terms are needed no finer than that.
        d_weight = tl.dot(tl.trans(v).to(tl.float32), d_sample, d_weight, input_precision="tf32x3")
        dv = tl.dot(d_sample, w, input_precision="tf32x3")
        of_dv = dv_ptr + b * dv_stride_b + g.to(tl.int64) * dv_stride_g + start * dv_stride_t
        tl.store(of_dv + row[:, None] * dv_stride_t + d[None, :], dv.to(v.dtype), mask=v_mask)
    to = (part.to(tl.int64) * (G * D) + g * D + d)[:, None] * G + head[None, :]
    tl.store(d_weight_ptr + to, d_weight, mask=(d < D)[:, None] & (head < G)[None, :])
    if tl.program_id(0) % (G * CHUNKS) == 0:
        tl.store(d_gate_ptr + part.to(tl.int64) * G + head, d_gate, mask=head < G)


@cache
def forward_constants(dtype: torch.dtype, G: int, D: int, exp: bool, keep_sample: bool) -> dict[str, int]:
    """What the forward kernel is compiled for."""
    # float32's product is unrolled, and with many heads the weights take the shared memory of a small card.
    largest = 32 if dtype == torch.float32 or G > 16 else 64
    return {
        **_constants(G, D, exp, largest),
        "KEEP_SAMPLE": keep_sample,
        "SCALE": 2048 if dtype == torch.float16 else 1,
        "BLOCK_T": BLOCK_T,
    }


@cache
def backward_constants(G: int, D: int, exp: bool) -> dict[str, int]:
    """What the backward kernel is compiled for."""
    return {**_constants(G, D, exp, 64), "BLOCK_T": 64 if G <= 16 else 32}


def backward_options(G: int) -> dict[str, int]:
    """How the backward kernel is compiled; with many heads, so that its sums stay in registers (sm_80, sm_90)."""
    return {"num_warps": 4, "num_stages": 3} if G <= 16 else {"num_warps": 8, "num_stages": 2}


def _constants(G: int, D: int, exp: bool, largest_block_d: int) -> dict[str, int]:
    block_d = min(largest_block_d, max(16, triton.next_power_of_2(D)))
    return {"G": G, "D": D, "HEADS": max(16, triton.next_power_of_2(G)), "EXP": exp, "BLOCK_D": block_d}
