"""The CUDA kernels as operators of torch, so that torch.compile, autograd and graph capture see them."""

import torch
from torch import Tensor

from dmabench.kernels.dma_cuda import launch
from dmabench.kernels.operators import operator


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    visits: list[Tensor],
    tiles: list[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out and lse; see launch.forward. `tiles` is what launch.backward takes, or empty if there will be no backward."""
    with torch.cuda.device_of(q):
        return launch.forward(q, k, v, delta, evict, visits, scale)


def _empty_forward(q, k, v, delta, evict, visits, tiles, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    visits: list[Tensor],
    tiles: list[Tensor],
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, ddelta; see launch.backward."""
    with torch.cuda.device_of(q):
        return launch.backward(q, k, v, delta, evict, visits, tiles, out, lse, dout, scale)


def _empty_backward(q, k, v, delta, evict, visits, tiles, out, lse, dout, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), delta.new_empty(delta.shape)


def _setup(ctx, inputs, output) -> None:
    q, k, v, delta, evict, visits, tiles, scale = inputs
    ctx.save_for_backward(q, k, v, delta, evict, *output, *visits, *tiles)
    ctx.visits, ctx.tiles, ctx.scale = len(visits), len(tiles), scale


def _differentiate(ctx, dout, _):
    q, k, v, delta, evict, out, lse, *lists = ctx.saved_tensors
    visits, tiles = lists[: ctx.visits], lists[ctx.visits :]
    gradients = backward(q, k, v, delta, evict, visits, tiles, out, lse, dout, ctx.scale)
    return *gradients, None, [None] * ctx.visits, [None] * ctx.tiles, None


forward = operator("dma_cuda_forward", _forward, _empty_forward, setup=_setup, gradients=_differentiate)
backward = operator("dma_cuda_backward", _backward, _empty_backward)
