"""The loss as one module, so that whatever wraps it (DDP, FSDP2) sees a forward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmabench.tasks.recipe import autocast

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
        with autocast(hidden.device, self.precision):
            logits = self.model.lm_head(hidden)
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum")
