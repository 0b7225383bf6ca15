"""What a mask is like, head by head, told by the lifetimes of its keys: how many keys matter at all and for how long,
how old they are, whether heads keep the same, and how many tiles a kernel touches in each order of the keys.

Everything is counted in tensor operations on any device, in O(T) memory a head but for `head_overlaps`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from dmabench.kernels.cost import kept_pairs
from dmabench.kernels.key_lists import BLOCK_Q
from dmabench.kernels.key_order import order_by_lifetime
from dmabench.kernels.plan import make_plan, make_tiles

BLOCK_K = 64
"""Keys of a tile, as in most kernels here."""
LEVELS = tuple(at / 20 for at in range(21))
"""Quantiles of lifetimes: 0 is the shortest, 1 the longest."""
QUERIES = 32
"""Queries, evenly over the second half of a length, whose live sets are compared."""


@dataclass(frozen=True)
class HeadFacts:
    """The mask of one key/value head over one sequence."""

    live_keys: int
    """Keys that some query attends to."""
    density: float
    """Pairs of a query and a key that it attends to, over those of dense causal attention."""
    ties: float
    """Share of keys whose importance another key has too, to the last bit: their order is that of their positions."""
    lifetimes: tuple[int, ...]
    """LEVELS of the number of queries that attend to a live key (nearest rank). The last `alive` keys would live on."""
    alive: int
    """Keys that the last query attends to."""
    age: int
    """Median distance from a query of the second half back to the keys that it attends to."""
    overlap: float | None
    """Mean Jaccard index of its live keys with those of each other head; None for a single head."""
    tiles_dense: int
    """Tiles of BLOCK_Q queries and BLOCK_K keys that dense causal attention touches."""
    tiles_in_order: int
    """Tiles that hold a pair, keys in the order of their positions."""
    tiles_reordered: int
    """The same, keys with similar lifetimes side by side (key_order.py)."""
    tiles_gathered: int
    """Tiles where each block of queries gathers the keys that it attends to (key_lists.py)."""


def head_facts(delta_GT: Tensor, window: int) -> list[HeadFacts]:
    """Facts of every head of one sequence.

    Args:
        delta_GT: importance [G, T], float32 or float64, finite.
        window: keys a query may attend to, at least 1.

    Raises:
        ValueError: as make_plan; importance that is not finite.
    """
    plan = make_plan(delta_GT[None], window)
    plan.require_finite()
    G, T = delta_GT.shape
    birth, evict = plan.birth_BGT, plan.evict_BGT
    order = order_by_lifetime(birth, evict).long()
    sizes = {"query_offset": 0, "query_len": T, "block_q": BLOCK_Q, "block_k": BLOCK_K}
    in_order = make_tiles(birth, evict, **sizes)
    reordered = make_tiles(birth.gather(-1, order), evict.gather(-1, order), **sizes)
    gathered = -(-keys_by_block(evict[0], BLOCK_Q) // BLOCK_K)
    ends = torch.arange(BLOCK_Q, T + BLOCK_Q, BLOCK_Q, device=delta_GT.device).clamp(max=T)
    dense = int((-(-ends // BLOCK_K)).sum())
    ages, overlaps = median_ages(evict, T), head_overlaps(evict, T)
    found = []
    for head in range(G):
        lifetimes = (evict[0, head] - birth[0, head])[plan.live_BGT[0, head]].sort().values
        ranks = [round(level * (len(lifetimes) - 1)) for level in LEVELS]
        found.append(
            HeadFacts(
                live_keys=len(lifetimes),
                density=int(lifetimes.sum()) / kept_pairs(T, T, None),
                ties=tied_share(delta_GT[head]),
                lifetimes=tuple(lifetimes[ranks].tolist()),
                alive=int((evict[0, head] == T).sum()),
                age=ages[head],
                overlap=overlaps[head] if overlaps else None,
                tiles_dense=dense,
                tiles_in_order=int((in_order.last_BGN - in_order.first_BGN)[0, head].sum()),
                tiles_reordered=int((reordered.last_BGN - reordered.first_BGN)[0, head].sum()),
                tiles_gathered=int(gathered[head].sum()),
            )
        )
    return found


def tied_share(delta_T: Tensor) -> float:
    """Share of values that another position has too; 0.0 and -0.0 are the same."""
    counts = torch.unique(delta_T + 0.0, return_counts=True)[1]
    return int(counts[counts > 1].sum()) / len(delta_T)


def keys_by_block(evict_GT: Tensor, block: int) -> Tensor:
    """int64 [G, ceil(T / block)]: how many keys some query of each block of `block` queries attends to."""
    G, T = evict_GT.shape
    position = torch.arange(T, device=evict_GT.device)
    live = (evict_GT > position).long()
    born = live.cumsum(-1)
    gone = torch.zeros(G, T + 1, dtype=torch.int64, device=evict_GT.device)
    gone.scatter_add_(1, evict_GT.long(), live)
    first = torch.arange(0, T, block, device=evict_GT.device)
    # Whoever was evicted by the block's first query was born before it.
    return born[:, (first + block - 1).clamp(max=T - 1)] - gone.cumsum(-1)[:, first]


def median_ages(evict_BGT: Tensor, n: int) -> list[int]:
    """For each head the median of i - j over the pairs of a query i of [n/2, n) and a key j that it attends to."""
    B, G, _ = evict_BGT.shape
    key = torch.arange(n, device=evict_BGT.device)
    first = key.clamp(min=n // 2).expand(B, G, n)
    end = evict_BGT[:, :, :n].long().clamp(max=n)
    live = end > first
    # A key that is live for the queries [first, end) adds one pair of each age from first - j to end - 1 - j.
    change = torch.zeros(G, n + 1, dtype=torch.int64, device=evict_BGT.device)
    one = live.long().transpose(0, 1).flatten(1)
    change.scatter_add_(1, ((first - key) * live).transpose(0, 1).flatten(1), one)
    change.scatter_add_(1, ((end - key) * live).transpose(0, 1).flatten(1), -one)
    below = change.cumsum(1).cumsum(1)
    return [int(torch.searchsorted(row, (row[-1] + 1) // 2)) for row in below]


def head_overlaps(evict_BGT: Tensor, n: int) -> list[float] | None:
    """For each head the mean Jaccard index of its live keys with those of the others, over QUERIES queries of
    [n/2, n); None for a single head."""
    G = evict_BGT.shape[1]
    if G < 2:
        return None
    queries = torch.linspace(n // 2, n - 1, min(QUERIES, n - n // 2), device=evict_BGT.device).long()[:, None]
    key = torch.arange(n, device=evict_BGT.device)
    live = (key <= queries) & (evict_BGT[:, :, None, :n] > queries)  # [B, G, Q, n]
    of_head: list[list[float]] = [[] for _ in range(G)]
    for one, other in itertools.combinations(range(G), 2):
        both = (live[:, one] & live[:, other]).sum(-1)
        either = (live[:, one] | live[:, other]).sum(-1)
        index = float((both / either).double().mean())
        of_head[one].append(index)
        of_head[other].append(index)
    return [fmean(values) for values in of_head]


def quantile(lifetimes: Sequence[int], level: float) -> int:
    """One of LEVELS out of HeadFacts.lifetimes."""
    return lifetimes[LEVELS.index(level)]
