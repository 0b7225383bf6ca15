"""What the masks of trained heads are like: how old live keys are, whether heads keep the same, and what lets a key in.

Beyond the training length too: importance is a number for each key, and the least important live key is the threshold
that a new one must pass. If longer contexts raise it, the heads keep the best of more keys.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dmabench.kernels.mask_facts import head_overlaps, median_ages
from dmabench.tasks.pairs_kept import watched

TIMES = (1, 2, 4, 8)
"""Lengths, over that of training."""
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class HeadMask:
    """One key/value head, over the second half of the first `tokens` tokens of each sequence."""

    layer: int
    head: int
    tokens: int
    age: int
    """Median distance from a query back to the keys that it attends to."""
    overlap: float | None
    """Mean Jaccard index of its live keys with those of each other head of the layer; None where there is none."""
    threshold: float
    """Importance of the least important live key at the end: mean over sequences."""
    quantiles: tuple[float, ...]
    """QUANTILES of importance."""


def mask_statistics(model: Any, input_ids: Tensor, trained: int) -> list[HeadMask]:
    """Statistics of every head of every dma layer at those of TIMES `trained` tokens that input_ids [B, T] reaches.

    Positions may go beyond those that the model was trained at.
    """
    config = model.config
    reach, config.max_position_embeddings = (
        config.max_position_embeddings,
        max(config.max_position_embeddings, input_ids.shape[1]),
    )
    try:
        layers = watched(model, input_ids)
    finally:
        config.max_position_embeddings = reach
    found = []
    window = config.window_of("dma")
    for layer, (delta, evict) in enumerate(layers):
        for times in TIMES:
            n = times * trained
            if n > input_ids.shape[1]:
                break
            ages, overlaps = median_ages(evict, n), head_overlaps(evict, n)
            part = delta[:, :, :n].float()
            least = part.topk(min(window or n, n), -1).values[..., -1].mean(0)
            wanted = torch.tensor(QUANTILES, device=part.device)
            values = torch.quantile(part.transpose(0, 1).flatten(1)[:, : 1 << 24], wanted, dim=1).T
            for head, own in enumerate(values.tolist()):
                told = overlaps[head] if overlaps else None
                found.append(HeadMask(layer, head, n, ages[head], told, float(least[head]), tuple(own)))
    return found


def chance_overlap(window: int, n: int) -> float:
    """About the Jaccard index of two random sets of live keys, mean over queries of [n/2, n)."""
    sizes = [(min(window, i + 1), i + 1) for i in range(n // 2, n)]
    return fmean(w / (2 * keys - w) for w, keys in sizes)  # two such sets share w^2 / keys of them


def columns(heads: list[HeadMask]) -> dict[str, list[Any]]:
    """The statistics as columns of a row, one entry a head and length."""
    names = ("layer", "head", "tokens", "age", "overlap", "threshold", "quantiles")
    return {f"mask_{name}": [_short(getattr(one, name)) for one in heads] for name in names}


def _short(value: Any) -> Any:
    """To six digits, which is what float32 has."""
    if isinstance(value, tuple):
        return [_short(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
