"""How many of the pairs that will be asked for are still among the keys that an attention reads when they are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmabench.tasks.attention.dma import DynamicMaskAttention
from dmabench.tasks.recall_examples import Recall
from dmabench.tasks.recipe import autocast

EXACT = ("mha", "mla", "swa", "dma")
"""Kinds whose live keys are known by their lifetimes; nsa chooses blocks for each query, and reads summaries of all."""


@dataclass(frozen=True)
class Kept:
    """Means over queries."""

    pairs_kept: float
    """Share of queries for which the key or the value of their pair is live in some head of some layer."""
    live_in_pairs: float
    """Share of live keys that are tokens of pairs, mean over heads and layers."""


@torch.no_grad()
def pairs_kept(model: Any, recall: Recall, batch: int) -> Kept | None:
    """Counts the live keys of a model's queries; None where a layer's attention has no lifetimes (nsa).

    Args:
        model: a DmabenchForCausalLM.
        recall: whole examples, on the CPU.
        batch: sequences a forward.
    """
    kinds = model.config.kinds
    if not set(kinds) <= set(EXACT):
        return None
    B, P = recall.queries.shape
    some = torch.zeros(B, P, dtype=torch.bool)
    shares = torch.zeros((), dtype=torch.float64)
    for start in range(0, B, batch):
        rows = slice(start, start + batch)
        queries = recall.queries[rows]
        for kind, layer_evict in zip(kinds, _evictions(model, recall.input_ids[rows]), strict=True):
            evict = layer_evict.cpu()
            context = evict[:, :, : 2 * P]
            last = context.unflatten(-1, (P, 2)).amax(-1)  # [B, G, P]: when the pair's second token goes
            some[rows] |= (last > queries[:, None]).any(1)
            # Tokens of pairs that are live at a query are those that go after it: counted in their order.
            ends, at = context.sort(-1).values, queries[:, None].expand_as(last).contiguous()
            gone = torch.searchsorted(ends, at, right=True)
            window = model.config.window_of(kind) or evict.shape[-1]
            live = (queries + 1).clamp(max=window)
            shares += ((2 * P - gone) / live[:, None]).mean(1).sum().double() / len(kinds)
    return Kept(some.double().mean().item(), shares.item() / (B * P))


def _evictions(model: Any, input_ids: Tensor) -> list[Tensor]:
    """For each layer int [B, G, T]: key j is read by the queries from j to this, less one."""
    config = model.config
    B, T = input_ids.shape
    chosen = iter([evict for _, evict in watched(model, input_ids)] if "dma" in config.kinds else [])
    position = torch.arange(T).expand(B, 1, T)
    fixed = {"swa": (position + config.window).clamp(max=T)}
    return [next(chosen) if kind == "dma" else fixed.get(kind, torch.full((B, 1, T), T)) for kind in config.kinds]


@torch.no_grad()
def watched(model: Any, input_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Importance float32 [B, G, T] and int32 eviction times [B, G, T] (key j is read by the queries from j to this,
    less one) of each dma layer, in a forward of input_ids [B, T]."""
    device = next(model.parameters()).device
    found: list[tuple[Tensor, Tensor]] = []
    layers = [one for one in model.modules() if isinstance(one, DynamicMaskAttention)]
    was_training = model.training
    model.eval()
    try:
        for layer in layers:
            layer.watch = lambda delta, plan: found.append((delta, plan.evict_BGT))
        with autocast(device, "bf16"):
            model.model(input_ids=input_ids.to(device))
    finally:
        model.train(was_training)
        for layer in layers:
            layer.watch = None
    return found
