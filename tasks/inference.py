"""How long a trained model takes for a batch of what it is tested on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmabench.tasks.recipe import autocast
from dmabench.tasks.scoring import labelled
from dmabench.tasks.task import Progress, Row, Tools

WARM = 2
"""Calls before a forward is captured."""


def inference_time(model: Any, input_ids: Tensor, labels: Tensor, tools: Tools) -> Row:
    """{"infer_ms", "infer_batch", "infer_replayed"}: milliseconds of one forward, with logits where labels are, and
    whether it was replayed from a CUDA graph; None if not to be timed.

    Args:
        input_ids, labels: int64 [B, T] on the CPU; -100 where there is no label.
    """
    if tools.time_ms is None:
        return {"infer_ms": None, "infer_batch": None, "infer_replayed": None}
    tools.progress(Progress("time", 0, 1))
    device = next(model.parameters()).device
    ids, index = input_ids.to(device), labelled(labels)[0].to(device)
    model.eval()

    @torch.no_grad()
    def forward() -> Tensor:
        with autocast(device, "bf16"):
            hidden = model.model(input_ids=ids).last_hidden_state
            logits: Tensor = model.lm_head(hidden.flatten(0, 1).index_select(0, index))
            return logits

    return timed_forward(forward, device, len(ids), tools)


def timed_forward(forward: Callable[[], Tensor], device: torch.device, batch: int, tools: Tools) -> Row:
    """The row of a forward: replayed from a CUDA graph where that can be, since the launches of a small model take
    longer than what they launch, and would be all that is measured."""
    assert tools.time_ms is not None
    call, replayed = forward, False
    if device.type == "cuda":
        replay = captured(forward)
        if replay is not None:
            call, replayed = replay, True
    return {"infer_ms": tools.time_ms(call), "infer_batch": batch, "infer_replayed": replayed}


def captured(forward: Callable[[], Tensor]) -> Callable[[], Any] | None:
    """A replay of a forward on a GPU; None where it cannot be captured.

    Raises:
        RuntimeError: the replay gives something else.
    """
    for _ in range(WARM):
        expected = forward()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = forward()
    except Exception:  # whatever a kernel does that cannot be captured: it is timed with its launches
        return None
    graph.replay()
    if not torch.allclose(found.float(), expected.float(), rtol=0.02, atol=0.02):
        raise RuntimeError("the replay of a forward from a CUDA graph gives other logits than the call")
    return graph.replay
