"""The importance of importance.py in one Triton kernel, and its gradients in another. On a GPU: fp16, bf16 and fp32.

The values are read once. A row's delta does not depend on the other rows of the call, nor on how many there are, so a
token gets the same delta when it is decoded as in a longer sequence. Nothing is added atomically.
"""

import torch
import triton
from torch import Tensor

from dmabench.kernels.importance_kernels import (
    BLOCK_T,
    FORWARD_OPTIONS,
    backward_constants,
    backward_kernel,
    backward_options,
    forward_constants,
    forward_kernel,
)
from dmabench.kernels.operators import operator
from dmabench.kernels.registry import wants_gradient
from dmabench.kernels.triton_launcher import Launcher

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEADS = 64
_BACKWARD_PROGRAMS = 1056
"""At least so many where there are enough rows: 8 for each of an H100's 132 processors."""

_launch_forward, _launch_backward = Launcher(forward_kernel), Launcher(backward_kernel)


def importance(v_BGTD: Tensor, weight: Tensor, gate: Tensor, parametrisation: str = "exp") -> Tensor:
    """See `dmabench.kernels.importance`, whose arguments these are, already checked.

    With float16 values, weights beyond 65504 overflow.
    """
    keep_sample = wants_gradient(v_BGTD, weight, gate)
    return importance_forward(v_BGTD, weight, gate, parametrisation == "exp", keep_sample)[0]


def _forward(v: Tensor, weight: Tensor, gate: Tensor, exp: bool, keep_sample: bool) -> tuple[Tensor, Tensor]:
    B, G, T, D = v.shape
    v = _unit_stride(v)
    delta, sample = _outputs(v, keep_sample)
    if delta.numel() > 0:
        with torch.cuda.device_of(v):
            _launch_forward(
                B * -(-T // BLOCK_T),
                (v, weight.contiguous(), gate.contiguous(), delta, sample),
                (T, *v.stride()[:3]),
                (v.dtype, weight.dtype, gate.dtype, G, D, exp, keep_sample),
                lambda: forward_constants(v.dtype, G, D, exp, keep_sample) | FORWARD_OPTIONS,
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
            _launch_backward(
                B * splits * columns,
                (d_delta.contiguous(), v, weight.contiguous(), gate.contiguous(), sample, dv, d_weight, d_gate),
                (T, splits, triton.cdiv(blocks, splits), *v.stride()[:3], *dv.stride()[:3]),
                (v.dtype, weight.dtype, gate.dtype, d_delta.dtype, G, D, exp),
                lambda: constants | backward_options(G),
            )
    return dv, d_weight.sum(0).to(weight.dtype), d_gate.sum(0).to(gate.dtype)


def _empty_backward(d_delta, v, weight, gate, sample, exp):
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


importance_forward = operator(
    "importance",
    _forward,
    lambda v, weight, gate, exp, keep_sample: _outputs(v, keep_sample),
    setup=_setup_context,
    gradients=_gradients,
)
"""(v [B, G, T, D], weight, gate, exp, keep_sample) -> delta, sample, float32 [B, G, T]. The sample is what goes into
softplus; gradients need it. Without keep_sample it is empty."""

importance_backward = operator("importance_backward", _backward, _empty_backward)
"""(d_delta, v, weight, gate, sample, exp) -> dv, d_weight, d_gate, each in the dtype of what it is the gradient of."""
