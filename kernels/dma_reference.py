"""dma/reference: the definition as a backend, for machines and dtypes that have nothing faster."""

import torch
from torch import Tensor

from dmabench.kernels import reference
from dmabench.kernels.plan import Plan
from dmabench.kernels.registry import Backend


def attend(q: Tensor, k: Tensor, v: Tensor, *, delta: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """See `dmabench.kernels.dynamic_mask_attention`. Reads the plan's finite flag, so it synchronises."""
    plan.require_finite()
    positions = torch.arange(plan.query_offset, plan.key_len, dtype=torch.int32, device=q.device)
    return reference.attend(q, k, v, delta, plan.birth_BGT, plan.evict_BGT, scale, positions)


BACKENDS = [Backend(function="dma", name="reference", attend=attend)]
