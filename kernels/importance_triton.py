"""The importance of importance.py in one Triton kernel, and its gradients in another. On a GPU: fp16, bf16 and fp32.

The values are read once. A row's delta does not depend on the other rows of the call, nor on how many there are, so a
token gets the same delta when it is decoded as in a longer sequence. Nothing is added atomically.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEADS = 64
BLOCK_T = 64
"""Always: with another number the compiler may take another instruction, and sum in another order."""
FORWARD_OPTIONS = {"num_warps": 4, "num_stages": 4}
_BACKWARD_PROGRAMS = 1056
"""At least so many where there are enough rows: 8 for each of an H100's 132 processors."""


def importance(v_BGTD: Tensor, weight: Tensor, gate: Tensor, parametrisation: str = "exp") -> Tensor:
    """See `dmabench.kernels.importance`, whose arguments these are, already checked.

    With float16 values, weights beyond 65504 overflow.
    """
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (v_BGTD, weight, gate))
    arguments = (v_BGTD, weight, gate, parametrisation == "exp", wants_gradient)
    # Going through the dispatcher costs as much as a launch, so it is left to those who need it.
    through_operator = wants_gradient or torch.compiler.is_compiling()
    return (importance_forward(*arguments) if through_operator else _forward(*arguments))[0]


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
def _forward_kernel(
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
def _backward_kernel(
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


def _forward(v: Tensor, weight: Tensor, gate: Tensor, exp: bool, keep_sample: bool) -> tuple[Tensor, Tensor]:
    B, G, T, D = v.shape
    v = _unit_stride(v)
    delta, sample = _outputs(v, keep_sample)
    if delta.numel() > 0:
        with torch.cuda.device_of(v):
            _forward_kernel[B * -(-T // BLOCK_T),](
                v,
                weight.contiguous(),
                gate.contiguous(),
                delta,
                sample,
                T,
                *v.stride()[:3],
                **forward_constants(v.dtype, G, D, exp, keep_sample),
                **FORWARD_OPTIONS,
            )
    return delta, sample


def _unit_stride(v: Tensor) -> Tensor:
    return v if v.stride(-1) == 1 else v.contiguous()


def _outputs(v: Tensor, keep_sample: bool) -> tuple[Tensor, Tensor]:
    B, G, T, _ = v.shape
    delta = torch.empty((B, G, T), dtype=torch.float32, device=v.device)
    return delta, torch.empty((B, G, T) if keep_sample else 0, dtype=torch.float32, device=v.device)


def _backward(
    d_delta: Tensor, v: Tensor, weight: Tensor, gate: Tensor, sample: Tensor, exp: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, G, T, D = v.shape
    v = _unit_stride(v)
    dv = torch.empty_like(v)
    constants = backward_constants(G, D, exp)
    columns = G * triton.cdiv(D, constants["BLOCK_D"])
    blocks = triton.cdiv(T, constants["BLOCK_T"])
    splits = max(1, min(blocks, triton.cdiv(_BACKWARD_PROGRAMS, max(1, B * columns))))
    d_weight = torch.empty(B * splits, G * D, G, dtype=torch.float32, device=v.device)
    d_gate = torch.empty(B * splits, G, dtype=torch.float32, device=v.device)
    if d_weight.numel() > 0:
        with torch.cuda.device_of(v):
            _backward_kernel[B * splits * columns,](
                d_delta.contiguous(),
                v,
                weight.contiguous(),
                gate.contiguous(),
                sample,
                dv,
                d_weight,
                d_gate,
                T,
                splits,
                triton.cdiv(blocks, splits),
                *v.stride()[:3],
                *dv.stride()[:3],
                **constants,
                **backward_options(G),
            )
    return dv, d_weight.sum(0).to(weight.dtype), d_gate.sum(0).to(gate.dtype)


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
    """How the backward kernel is compiled: with many heads so that its sums stay in registers (ptxas, sm_80 and sm_90)."""
    return {"num_warps": 4, "num_stages": 3} if G <= 16 else {"num_warps": 8, "num_stages": 2}


def _constants(G: int, D: int, exp: bool, largest_block_d: int) -> dict[str, int]:
    block_d = min(largest_block_d, max(16, triton.next_power_of_2(D)))
    return {"G": G, "D": D, "HEADS": max(16, triton.next_power_of_2(G)), "EXP": exp, "BLOCK_D": block_d}


importance_forward = torch.library.custom_op(
    "dmabench::importance",
    _forward,
    mutates_args=(),
    schema="(Tensor v, Tensor weight, Tensor gate, bool exp, bool keep_sample) -> (Tensor, Tensor)",
)
"""(v [B, G, T, D], weight, gate, exp, keep_sample) -> delta, sample, float32 [B, G, T]. The sample is what goes into
softplus; gradients need it. Without keep_sample it is empty."""

importance_backward = torch.library.custom_op(
    "dmabench::importance_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor d_delta, Tensor v, Tensor weight, Tensor gate, Tensor sample, bool exp)"
    " -> (Tensor, Tensor, Tensor)",
)
"""-> dv, d_weight, d_gate, each in the dtype of what it is the gradient of."""


@importance_forward.register_fake
def _(v, weight, gate, exp, keep_sample):
    return _outputs(v, keep_sample)


@importance_backward.register_fake
def _(d_delta, v, weight, gate, sample, exp):
    return torch.empty_like(_unit_stride(v)), torch.empty_like(weight), torch.empty_like(gate)


def _setup_context(ctx, inputs, output) -> None:
    v, weight, gate, exp, keep_sample = inputs
    if not keep_sample:
        raise RuntimeError("gradients of importance need keep_sample=True")
    ctx.exp = exp
    ctx.save_for_backward(v, weight, gate, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, d_delta: Tensor, _) -> tuple[Tensor | None, ...]:
    v, weight, gate, sample = ctx.saved_tensors
    return *importance_backward(d_delta, v, weight, gate, sample, ctx.exp), None, None


importance_forward.register_autograd(_gradients, setup_context=_setup_context)
