"""The loss in parts is the loss of the whole, and no more logits are kept than a part has."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmabench.tasks import labelled_loss
from dmabench.tasks.labelled_loss import LabelledLoss
from dmabench.tasks.task_model import build_model

VOCABULARY = 32
SETTINGS = {"attention": "dma", "window": 4, "d_model": 16, "layers": 1, "heads": 2, "kv_heads": 1, "seed": 3}


LABELS = 50


def made(dtype: torch.dtype) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A model, sequences, labelled positions in no order, and their targets."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (3, 24), generator=draw)
    index = torch.randperm(3 * 24, generator=draw)[:LABELS]
    targets = torch.randint(VOCABULARY, (LABELS,), generator=draw)
    return build_model(SETTINGS, VOCABULARY, 24).to(dtype), ids, index, targets


@pytest.mark.parametrize("rows", [1, 7, 49, 50])
def test_parts_are_the_whole(rows: int, monkeypatch: Any) -> None:
    model, ids, index, targets = made(torch.float64)
    expected = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1)[index], targets, reduction="sum")
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", rows * VOCABULARY)
    loss = LabelledLoss(model, "fp32")(ids, index, targets)
    loss.backward()
    assert torch.allclose(loss, expected, rtol=1e-13)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("rows", "kept"), [(LABELS, True), (10, False)])
def test_logits_of_more_than_a_part_are_not_kept(rows: int, kept: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", rows * VOCABULARY)
    model, *batch = made(torch.float32)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):
        LabelledLoss(model, "fp32")(*batch)
    assert (torch.Size((LABELS, VOCABULARY)) in shapes) is kept
    assert torch.Size((10, VOCABULARY)) not in shapes
