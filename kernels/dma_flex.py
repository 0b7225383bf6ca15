"""dma/flex: dynamic mask attention through FlexAttention, fed with the plan's tiles.

Keys are permuted into the plan's order, where tiles are nearly all-live or all-dead, and FlexAttention runs over the
active ones. Time follows the kept pairs; memory is linear in T but for the tile lists (see block_masks.py). Nothing
here waits for the device, so every key keeps a slot: how many are live is not known on the host. Forward and backward
on CUDA; forward on a CPU.
"""

import torch
from torch import Tensor

from dmabench.kernels import flex
from dmabench.kernels.block_masks import TileLists, tile_lists
from dmabench.kernels.plan import Plan
from dmabench.kernels.registry import Backend, Problem, wants_gradient


def _keys(plan: Plan) -> tuple[Tensor | None, Tensor, Tensor]:
    """Positions of the keys in the order of the tiles, int64 [B, G, Tk] (None: they are in it already), and the keys'
    birth and eviction in that order (int32). Dead keys have evict <= birth, an empty life."""

    def make() -> tuple[Tensor | None, Tensor, Tensor]:
        if not plan.gathers:
            return None, plan.birth_BGT.contiguous(), plan.evict_BGT
        order = plan.order_BGT.long()
        return order, plan.birth_BGT.gather(-1, order), plan.evict_BGT.gather(-1, order)

    return plan.derived("flex keys", make)


def _lists(plan: Plan, groups: int, backward: bool) -> TileLists:
    def make() -> TileLists:
        query_blocks = -(-plan.query_len // flex.BLOCK)
        return tile_lists(plan.tiles(flex.BLOCK, flex.BLOCK), query_blocks, backward).to_heads(groups)

    return plan.derived(("flex lists", groups, backward), make)


def prepare(*, plan: Plan, delta: Tensor, problem: Problem) -> None:
    """Make what the call needs from the plan; the call does it by itself if this was not called."""
    _keys(plan)
    _lists(plan, problem.groups, problem.backward)
    plan.references(delta, rows=True)


def _executed_pairs(*, plan: Plan, problem: Problem) -> int:
    return int(plan.tiles(flex.BLOCK, flex.BLOCK).executed_pairs()) * problem.groups


def attend(q: Tensor, k: Tensor, v: Tensor, *, delta: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor | None]:
    """See `dmabench.kernels.dynamic_mask_attention`; `plan` holds the window."""
    backward = wants_gradient(q, k, v, delta)
    precision = torch.promote_types(delta.dtype, q.dtype)  # float32, or float64 where torch evaluates it eagerly
    references = plan.references(delta, rows=True).to(precision)  # of the positions, so before the keys are permuted
    order, birth, evict = _keys(plan)
    if order is not None:
        delta, k, v = (_TakeKeys.apply(x, order) for x in (delta, k, v))
    bias = delta.masked_fill(evict <= birth, 0.0).to(precision)  # a dead key's delta may be NaN
    lists = _lists(plan, q.shape[1] // k.shape[1], backward)
    return flex.attend(q, k, v, bias, birth, evict, lists, plan.query_offset, scale, references)


class _TakeKeys(torch.autograd.Function):
    """x[b, g, order[b, g]] along the key dimension. Positions are distinct, so the gradient is a plain scatter,
    deterministic and without the atomics of gather's own backward."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        ctx.keys = x.shape[2]
        return x.gather(2, order if x.dim() == 3 else order[..., None].expand(*order.shape, x.shape[-1]))

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        shape = (*grad.shape[:2], ctx.keys, *grad.shape[3:])
        index = order if grad.dim() == 3 else order[..., None].expand_as(grad)
        return grad.new_zeros(shape).scatter_(2, index, grad), None


BACKENDS = [
    Backend(
        function="dma",
        name="flex",
        attend=attend,
        missing=flex.missing,
        refuses=flex.refuses,
        prepare=prepare,
        executed_pairs=_executed_pairs,
    )
]
