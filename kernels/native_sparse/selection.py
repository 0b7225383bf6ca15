"""Which blocks of tokens a query attends to in full (arXiv 2502.11089, equations 9 to 12)."""

import torch
from torch import Tensor

from dmabench.kernels.native_sparse.settings import LOCAL_BLOCKS, Settings


def block_scores(probabilities: Tensor, settings: Settings, blocks: int) -> Tensor:
    """Probabilities of compressed keys [..., C] -> scores of selection blocks [..., `blocks`].

    The paper's equation 9, read as: cut the tokens into chunks of d. A compressed key lends its probability to each of
    its l / d chunks, and a selection block adds up its own l' / d chunks. With l = d = l' the scores are the
    probabilities.
    """
    compressed, stride = probabilities.shape[-1], settings.compress_stride
    per_block = settings.select_block // stride
    chunks = probabilities.new_zeros(*probabilities.shape[:-1], blocks * per_block)
    for shift in range(settings.compress_block // stride if compressed else 0):
        chunks[..., shift : shift + compressed] += probabilities
    return chunks.unflatten(-1, (blocks, per_block)).sum(-1)


def choose(scores: Tensor, positions: Tensor, settings: Settings, stable: bool = True) -> Tensor:
    """The n best blocks that begin at or before the query: int64 [B, G, R, min(n, S)], -1 where there are fewer.

    The first block and the local ones come first whatever their score.

    Args:
        scores: [B, G, R, S], summed over the query heads of a group, which share their blocks.
        positions: int [R] or [B, R], of the queries.
        stable: of equal scores the earlier block wins; without it any may, in less time.
    """
    own = _per_row(positions)[..., None] // settings.select_block
    block = torch.arange(scores.shape[-1], device=scores.device)
    always = (block == 0) | ((block <= own) & (block > own - LOCAL_BLOCKS))
    ranked = torch.where(always, torch.inf, scores).masked_fill(block > own, -torch.inf)
    count = min(settings.select_count, scores.shape[-1])
    if stable:
        best = ranked.sort(stable=True, dim=-1, descending=True).indices[..., :count]
    else:
        best = ranked.topk(count, -1).indices
    return best.masked_fill(best > own, -1)


def as_mask(chosen: Tensor, blocks: int) -> Tensor:
    """int [B, G, R, n] with -1 for none -> bool [B, G, R, blocks]."""
    mask = torch.zeros(*chosen.shape[:-1], blocks + 1, dtype=torch.bool, device=chosen.device)
    return mask.scatter(-1, chosen.long() % (blocks + 1), True)[..., :blocks]  # -1 goes to the column cut off


def _per_row(positions: Tensor) -> Tensor:
    """[R] or [B, R] -> [B or 1, 1, R]."""
    return positions[None, None] if positions.dim() == 1 else positions[:, None]
