"""dma/cuda: dynamic mask attention in CUDA C++, compiled by NVRTC when it is first called.

Tensor cores through mma.sync, so any GPU from sm_80 on; Hopper has kernels of its own, with wgmma (hopper.py).
Queries gather their keys by the plan's lists; where the window is too large for that to pay, keys are visited in the
order of their positions.
"""

import torch
from torch import Tensor

from dmabench.kernels import nvrtc
from dmabench.kernels.dma_cuda import hopper, ops
from dmabench.kernels.dma_cuda.hopper_backward import PAIR
from dmabench.kernels.dma_cuda.launch import BLOCK_Q, HEAD_DIMS, ROWS, TILE
from dmabench.kernels.plan import Plan
from dmabench.kernels.registry import Backend, Problem, needs_half, wants_gradient


def missing(device: str) -> str | None:
    """Why the kernels cannot run there, or None."""
    why = hopper.misnamed() or nvrtc.missing(device)
    if why is None and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return f"the CUDA kernels need sm_80 or later, and {torch.cuda.get_device_name()} is older"
    return why


def refuses(problem: Problem) -> str | None:
    """Why the kernels cannot do this problem, or None."""
    if problem.head_dim not in HEAD_DIMS:
        return f"the CUDA kernels exist for head dimensions {' and '.join(map(str, HEAD_DIMS))}, not {problem.head_dim}"
    return needs_half(problem, "the CUDA kernels")


def _visits(plan: Plan) -> list[Tensor]:
    """Which keys each block of queries visits."""
    if plan.gathers:
        lists = plan.key_lists()
        return [lists.keys_BGQL, lists.full_BGQ, lists.count_BGQ]
    return _ranges(plan)


def _ranges(plan: Plan) -> list[Tensor]:
    tiles = plan.tiles(BLOCK_Q, TILE)
    return [tiles.first_BGN, tiles.last_BGN, tiles.full_first_BGN, tiles.full_last_BGN]


def _tiles(plan: Plan, groups: int) -> list[Tensor]:
    """Which queries each tile of keys meets, and where their steps end."""
    together = PAIR if hopper.serves("dkdv", plan.evict_BGT.device) else TILE
    return [plan.order_BGT, *_ranges(plan), plan.step_ends(BLOCK_Q, together, groups, ROWS)]


def prepare(*, plan: Plan, delta: Tensor, problem: Problem) -> None:
    """Make what the call needs from the plan; the call does it by itself if this was not called."""
    _visits(plan)
    plan.references(delta)
    if problem.backward:
        _tiles(plan, problem.groups)


def executed_pairs(*, plan: Plan, problem: Problem) -> int:
    """Query-key pairs that the forward computes, all heads; reads the plan from the device."""
    on_hopper = hopper.serves("forward", plan.evict_BGT.device)
    step = hopper.variant(problem.head_dim, problem.groups).keys if on_hopper else TILE
    pairs = plan.key_lists().executed_pairs(step) if plan.gathers else plan.tiles(BLOCK_Q, step).executed_pairs()
    return int(pairs) * problem.groups


def attend(q: Tensor, k: Tensor, v: Tensor, *, delta: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """See `dmabench.kernels.dynamic_mask_attention`; `plan` holds the window."""
    tiles = _tiles(plan, q.shape[1] // k.shape[1]) if wants_gradient(q, k, v, delta) else []
    out, lse, _ = ops.forward(q, k, v, delta, plan.evict_BGT, plan.references(delta), _visits(plan), tiles, scale)
    return out, lse.detach()


BACKENDS = [
    Backend(
        function="dma",
        name="cuda",
        attend=attend,
        missing=missing,
        refuses=refuses,
        prepare=prepare,
        executed_pairs=executed_pairs,
    )
]
