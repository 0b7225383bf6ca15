"""How long a trained model takes for a batch of what it is tested on."""

from typing import Any

import torch
from torch import Tensor

from dmabench.tasks.recipe import autocast
from dmabench.tasks.scoring import labelled
from dmabench.tasks.task import Progress, Row, Tools


def inference_time(model: Any, input_ids: Tensor, labels: Tensor, tools: Tools) -> Row:
    """{"infer_ms", "infer_batch"}: milliseconds of one forward, with logits where labels are; None if not to be timed.

    Args:
        input_ids, labels: int64 [B, T] on the CPU; -100 where there is no label.
    """
    if tools.time_ms is None:
        return {"infer_ms": None, "infer_batch": None}
    tools.progress(Progress("time", 0, 1))
    device = next(model.parameters()).device
    ids, index = input_ids.to(device), labelled(labels)[0].to(device)
    model.eval()

    @torch.no_grad()
    def forward() -> Any:
        with autocast(device, "bf16"):
            hidden = model.model(input_ids=ids).last_hidden_state
            return model.lm_head(hidden.flatten(0, 1).index_select(0, index))

    return {"infer_ms": tools.time_ms(forward), "infer_batch": len(ids)}
