"""The order in which tiles cut the keys: keys with similar lifetimes side by side, so that tiles are nearly all-live or
all-dead.

Lifetimes are points (birth, evict). Live keys are taken in slabs of 2048 along birth, and each slab is halved along
its wider side again and again, like a k-d tree, down to a tile. That needs 10-15% fewer tiles than a Z-order curve and
as few as a k-d tree over all keys, and unlike either it never sorts more than a slab (results/LOG.md, 2026-11-24).
"""

import torch
from torch import Tensor

SLAB = 2048
LEAF = 64
_LAST = torch.iinfo(torch.int32).max


def order_by_lifetime(birth_BGT: Tensor, evict_BGT: Tensor) -> Tensor:
    """Key positions in tile order, in tensor operations on any device; dead keys last, by position.

    Args:
        birth_BGT, evict_BGT: int32 [B, G, T]; evict <= birth marks a dead key.

    Returns:
        int32 [B, G, T], a permutation of the positions.
    """
    T = birth_BGT.shape[-1]
    live_first = torch.sort((evict_BGT <= birth_BGT).to(torch.int8), dim=-1, stable=True).indices
    padded = torch.nn.functional.pad(live_first, (0, -T % SLAB), value=T)
    birth, evict = (torch.nn.functional.pad(x.long(), (0, 1)) for x in (birth_BGT, evict_BGT))
    position = padded.unflatten(-1, (-1, SLAB))
    size = SLAB
    while size > LEAF:
        segments = position.unflatten(-1, (-1, size)).flatten(2, 3)
        sides = [x.gather(-1, segments.flatten(2)).view_as(segments) for x in (birth, evict)]
        dead = sides[1] <= sides[0]
        widths = [x.masked_fill(dead, -1).amax(-1) - x.masked_fill(dead, _LAST).amin(-1) for x in sides]
        along_birth = (widths[0] >= widths[1])[..., None]
        side = torch.where(along_birth, sides[0], sides[1]).masked_fill(dead, _LAST)
        position = torch.sort((side << 32) | segments, dim=-1).values & 0xFFFFFFFF
        size //= 2
    return position.flatten(2)[..., :T].to(torch.int32)
