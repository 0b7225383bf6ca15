"""dma/sdpa-masked: the paper's protocol. SDPA is handed a dense [B, H, T, T] mask that also carries the bias.

It computes the right function at T^2 memory and time. It is here to set our numbers beside the published ones, whose
baseline it is; nobody should use it. The mask is part of the plan's time, which the paper leaves out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmabench.kernels.plan import Plan
from dmabench.kernels.registry import HALF, Backend, Problem


def _live(plan: Plan) -> Tensor:
    """bool [B, G, Tq, Tk]."""

    def make() -> Tensor:
        i = torch.arange(plan.query_offset, plan.key_len, dtype=torch.int32, device=plan.evict_BGT.device)[:, None]
        return (plan.birth_BGT[:, :, None] <= i) & (i < plan.evict_BGT[:, :, None])

    return plan.derived("dense mask", make)


class _Mask(torch.autograd.Function):
    """delta [B, G, Tk] where live, else -inf: [B, H, Tq, Tk] in q's dtype. Its gradient is summed in float32, where
    autograd's own chain would round T half-precision sums."""

    @staticmethod
    def forward(ctx, delta, live, groups, dtype):
        ctx.groups = groups
        return delta.to(dtype)[:, :, None, :].masked_fill(~live, float("-inf")).repeat_interleave(groups, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad.unflatten(1, (-1, ctx.groups)).sum((2, 3), dtype=torch.float32), None, None, None


def prepare(*, plan: Plan, delta: Tensor, problem: Problem) -> None:
    """Materialise the mask ahead of the call, where no gradient has to flow through it."""
    _live(plan)
    if not problem.backward:
        mask = _Mask.apply(delta, _live(plan), problem.groups, problem.dtype)
        plan.derived(("float mask", problem.groups, problem.dtype), lambda: (delta, mask))


def attend(q: Tensor, k: Tensor, v: Tensor, *, delta: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor | None]:
    """See `dmabench.kernels.dynamic_mask_attention`; SDPA gives no lse, so the second result is None."""
    groups = q.shape[1] // k.shape[1]
    of_delta, mask = plan.derived(("float mask", groups, q.dtype), lambda: (None, None))
    if of_delta is not delta:
        mask = _Mask.apply(delta, _live(plan), groups, q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=groups > 1)
    empty = ~_live(plan).any(-1).repeat_interleave(groups, 1)
    return out.masked_fill(empty[..., None], 0.0), None


def _workspace(problem: Problem) -> int:
    pairs = problem.batch * problem.heads * problem.query_len * problem.key_len
    return pairs * torch.finfo(problem.dtype).bits // 8 + pairs // problem.groups


def _refuses(problem: Problem) -> str | None:
    if problem.backward and problem.dtype in HALF:
        # Seen on an H200, bf16, T = 8192: ddelta is off by 0.088, twice what the gate grants.
        return "SDPA rounds the gradient of its mask to half precision, too coarse for ddelta; use --dtype fp32"
    return None


BACKENDS = [
    Backend(
        function="dma",
        name="sdpa-masked",
        attend=attend,
        refuses=_refuses,
        prepare=prepare,
        workspace=_workspace,
    )
]
