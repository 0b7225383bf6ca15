"""The loss as one module, so that whatever wraps it (DDP, FSDP2) sees a forward."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dmabench.tasks.recipe import autocast


class LabelledLoss(nn.Module):
    """The sum of cross-entropies in float32 at the labelled positions, which alone go through the output layer."""

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, input_ids: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        """input_ids [B, T], index and targets [N], all int64, to a scalar."""
        with autocast(input_ids.device, self.precision):
            hidden = self.model.model(input_ids=input_ids).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1).index_select(0, index))
        return F.cross_entropy(logits.float(), targets, reduction="sum")
