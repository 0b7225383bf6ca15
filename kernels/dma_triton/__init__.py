"""dma/triton: dynamic mask attention in three Triton kernels, forward and backward.

Queries gather the keys of their list where the window is small beside the keys, and walk over tiles of keys in order
where it is not; the keys' gradients walk over the plan's tiles. See kernels/plan.py for both structures.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from dmabench.kernels.plan import Plan, Tiles
from dmabench.kernels.registry import Backend, Problem, Unsupported, wants_gradient

TILE = 64
"""Keys of the tiles that the kernels walk over."""
_BLOCK_Q = 128

if find_spec("triton") is not None:
    from dmabench.kernels.dma_triton import configs, ops
    from dmabench.kernels.dma_triton.forward import forward_kernel

    _INTERPRETED = type(forward_kernel).__name__ == "InterpretedFunction"
    _INSTALLED = True
else:
    _INSTALLED = _INTERPRETED = False


def _missing(device: str) -> str | None:
    if not _INSTALLED:
        return "Triton is not installed; its packages are for Linux"
    if device == "cpu" and not _INTERPRETED:
        return "Triton kernels need a CUDA device (with TRITON_INTERPRET=1 set they run on a CPU, slowly)"
    if device == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "the Triton kernels need a CUDA device of compute capability 8.0 or later"
    return None


def _refuses(problem: Problem) -> str | None:
    if problem.dtype == torch.float64:
        return "the Triton kernels have no float64; dma/reference has it"
    if problem.head_dim > 256:
        return f"the Triton kernels take head dimensions up to 256, not {problem.head_dim}"
    if problem.device == "cpu" and problem.dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly; use --dtype fp16 or fp32"
    return None


def _tiles(plan: Plan) -> Tiles:
    return plan.tiles(_BLOCK_Q, TILE)


def prepare(*, plan: Plan, delta: Tensor, problem: Problem) -> None:
    """Make what the call needs from the plan; the call does it by itself if this was not called."""
    structures(plan, delta, problem.backward, problem.head_dim, problem.dtype, problem.groups)


def _executed_pairs(*, plan: Plan, problem: Problem) -> int:
    if not plan.gathers:
        return int(_tiles(plan).executed_pairs()) * problem.groups
    device = plan.evict_BGT.device
    block = configs.for_call(problem.head_dim, problem.dtype, device, problem.groups).forward.block_n
    return int(plan.key_lists().executed_pairs(block)) * problem.groups


def attend(q: Tensor, k: Tensor, v: Tensor, *, delta: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """See `dmabench.kernels.dynamic_mask_attention`; `plan` holds the window."""
    if why := _missing(q.device.type):
        raise Unsupported(why)
    backward, groups = wants_gradient(q, k, v, delta), q.shape[1] // k.shape[1]
    out, lse, _ = ops.forward(q, k, v, delta, *structures(plan, delta, backward, q.shape[3], q.dtype, groups), scale)
    return out, lse.detach()


def structures(
    plan: Plan, delta: Tensor, backward: bool, head_dim: int, dtype: torch.dtype, groups: int
) -> tuple[Tensor | None, ...]:
    """The tensors of the plan that `ops.forward` takes after delta: evict, references, keys, full, count, order, first,
    last, full_first, full_last, ends; None for what is not needed.

    Args:
        head_dim, dtype, groups: of the call; with them the configuration that is chosen for it.
    """
    lists = tiles = ends = None
    if plan.gathers:
        lists = plan.key_lists()
    if backward or not plan.gathers:
        tiles = _tiles(plan)
    if backward and (shared := _shared_keys(head_dim, dtype, plan.evict_BGT.device, groups)):
        ends = plan.step_ends(_BLOCK_Q, shared, groups, _BLOCK_Q)
    return (
        plan.evict_BGT,
        plan.references(delta),
        *((lists.keys_BGQL, lists.full_BGQ, lists.count_BGQ) if lists else (None,) * 3),
        plan.order_BGT if backward else None,
        *((tiles.first_BGN, tiles.last_BGN, tiles.full_first_BGN, tiles.full_last_BGN) if tiles else (None,) * 4),
        ends,
    )


@torch.compiler.assume_constant_result
def _shared_keys(head_dim: int, dtype: torch.dtype, device: torch.device, groups: int) -> int | None:
    """Keys of a tile where programs share the gradients of keys evenly, else None. Looked up in files and in what the
    device says of itself, where torch.compile cannot follow."""
    config = configs.for_call(head_dim, dtype, device, groups).keys
    return config.block_n if config.even else None


BACKENDS = [
    Backend(
        function="dma",
        name="triton",
        attend=attend,
        missing=_missing,
        refuses=_refuses,
        prepare=prepare,
        executed_pairs=_executed_pairs,
    )
]
