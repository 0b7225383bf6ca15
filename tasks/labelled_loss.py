"""The loss as one module, so that whatever wraps it (DDP, FSDP2) sees a forward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dmabench.tasks.recipe import autocast
from dmabench.tasks.scoring import NO_LABEL

MOST_LOGITS = 1 << 28
"""Logits that are kept for the backward: a GiB in float32. More are computed in parts, each once more in the backward:
32k tokens of 152k words would be 20 GB, and as much again for their gradient. (torch's own linear_cross_entropy does
the same, but only newer versions than the oldest supported have it.)"""


class LabelledLoss(nn.Module):
    """The sum of cross-entropies in float32 at the labelled positions, which alone go through the output layer."""

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, input_ids: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        """input_ids [B, T], index and targets [N], all int64, to a scalar."""
        with autocast(input_ids.device, self.precision):
            hidden = self.model.model(input_ids=input_ids).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, index)
        rows = max(1, MOST_LOGITS // self.model.lm_head.weight.shape[0])
        if len(targets) <= rows:
            return self._loss(hidden, targets)
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.stack([checkpoint(self._loss, *part, use_reentrant=False) for part in parts]).sum()

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Each part casts the weight for itself, so that gradients of parts add up in the weight's own precision."""
        head, on = self.model.lm_head, hidden.device
        with autocast(on, self.precision):
            if type(head) is nn.Linear and head.bias is None:
                dtype = torch.get_autocast_dtype(on.type) if torch.is_autocast_enabled(on.type) else hidden.dtype
                loss: Tensor = _SummedLoss.apply(hidden, head.weight, targets, dtype)
                return loss
            logits = head(hidden)
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum")


class _SummedLoss(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T`, summed over targets that are not -100, in two thirds of the memory traffic
    of plain operations: the gradient of the logits is never held in float32, and no zeros are written for it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """hidden [N, C], weight [V, C], targets int64 [N]; products in `dtype`, the rest in float32 at least."""
        real = targets != NO_LABEL
        place = targets.clamp(min=0)[:, None]
        h, w = hidden.to(dtype), weight.to(dtype)
        logits = h @ w.T
        logprob = torch.log_softmax(logits if dtype == torch.float64 else logits.float(), -1)
        at_target = logprob.gather(1, place)
        ctx.save_for_backward(h, w, logprob, place, at_target, real)
        ctx.dtypes = hidden.dtype, weight.dtype
        return -(at_target[:, 0] * real).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (scale,), (h, w, logprob, place, at_target, real) = grads, ctx.saved_tensors
        dlogits = torch.empty(logprob.shape, dtype=h.dtype, device=h.device)
        torch.exp(logprob, out=dlogits)
        dlogits.scatter_(1, place, torch.expm1(at_target).to(h.dtype))  # p - 1, exact where p is near 1
        dhidden = (dlogits @ w).to(ctx.dtypes[0]) * (scale * real[:, None])
        dweight = (dlogits.T @ (h * real[:, None])).to(ctx.dtypes[1]) * scale
        return dhidden, dweight, None, None
