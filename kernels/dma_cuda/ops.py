"""The CUDA kernels as operators of torch, so that torch.compile, autograd and graph capture see them."""

import torch
from torch import Tensor

from dmabench.kernels.dma_cuda import hopper, hopper_backward, launch
from dmabench.kernels.operators import operator


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    visits: list[Tensor],
    tiles: list[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See launch.forward. `tiles` is what launch.backward takes, or empty if there will be no backward."""
    with torch.cuda.device_of(q):
        run = hopper.forward if hopper.serves("forward", q.device) else launch.forward
        return run(q, k, v, delta, evict, origins, visits, scale)


def _empty_forward(q, k, v, delta, evict, origins, visits, tiles, scale):
    lse, relative_lse = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    return q.new_empty(q.shape), lse, relative_lse


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    visits: list[Tensor],
    tiles: list[Tensor],
    out: Tensor,
    relative_lse: Tensor,
    dout: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, ddelta; see launch.backward."""
    with torch.cuda.device_of(q):
        dq = hopper_backward.backward_dq if hopper.serves("dq", q.device) else launch.backward_dq
        dkdv = hopper_backward.backward_dkdv if hopper.serves("dkdv", q.device) else launch.backward_dkdv
        given = (q, k, v, delta, evict, origins, visits, tiles, out, relative_lse, dout, scale)
        return launch.backward(*given, dq, dkdv)


def _empty_backward(q, k, v, delta, evict, origins, visits, tiles, out, relative_lse, dout, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), delta.new_empty(delta.shape)


def _setup(ctx, inputs, output) -> None:
    q, k, v, delta, evict, origins, visits, tiles, scale = inputs
    out, _, relative_lse = output
    ctx.save_for_backward(q, k, v, delta, evict, origins, out, relative_lse, *visits, *tiles)
    ctx.visits, ctx.tiles, ctx.scale = len(visits), len(tiles), scale


def _differentiate(ctx, dout, *_):
    q, k, v, delta, evict, origins, out, relative_lse, *lists = ctx.saved_tensors
    visits, tiles = lists[: ctx.visits], lists[ctx.visits :]
    gradients = backward(q, k, v, delta, evict, origins, visits, tiles, out, relative_lse, dout, ctx.scale)
    return *gradients, None, None, [None] * ctx.visits, [None] * ctx.tiles, None


forward = operator("dma_cuda_forward", _forward, _empty_forward, setup=_setup, gradients=_differentiate)
backward = operator("dma_cuda_backward", _backward, _empty_backward)
