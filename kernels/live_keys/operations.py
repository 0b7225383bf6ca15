"""What LiveKeys does, in tensor operations: any device, any dtype, no synchronisation, shapes known in advance.

Slots of a head are filled from the front, so `slot < count` tells which hold a key; apart from that their order is
of no importance. Positions decide ties: of equal deltas the later key stays.
"""

import torch
from torch import Tensor

from dmabench.kernels import reference

NO_POSITION = torch.iinfo(torch.int32).max
"""Later than every position."""


def usable_keys(delta_BGT: Tensor, key_mask_BT: Tensor | None) -> Tensor:
    """bool [B, G, T]: keys that may ever be live, which NaN and padding may not."""
    usable = ~delta_BGT.isnan()
    return usable if key_mask_BT is None else usable & key_mask_BT[:, None, :]


def live_at_end(delta_BGT: Tensor, usable_BGT: Tensor, window: int) -> Tensor:
    """bool [B, G, T]: the `window` best of the usable keys, the later of equals."""
    if window >= delta_BGT.shape[-1]:
        return usable_BGT
    # Two stable sorts, the more important one last: an unusable key ranks below a usable one of delta = -inf.
    # Adding 0.0 makes -0.0 equal +0.0, which a radix sort would tell apart.
    order = torch.sort(delta_BGT + 0.0, dim=-1, stable=True).indices
    by_use = torch.sort(usable_BGT.gather(-1, order).to(torch.int8), dim=-1, stable=True).indices
    best = order.gather(-1, by_use)[..., -window:]
    return torch.zeros_like(usable_BGT).scatter_(-1, best, True) & usable_BGT


def pack(chosen_BGT: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Where the chosen keys are, in order, and how many: int64 [B, G, slots] and int32 [B, G].

    At most `slots` keys of a head may be chosen. Entries from the count on are 0.
    """
    B, G, T = chosen_BGT.shape
    place = torch.where(chosen_BGT, chosen_BGT.cumsum(-1) - 1, slots)  # what is not chosen goes to one slot too many
    source = torch.arange(T, device=chosen_BGT.device).expand(B, G, T)
    packed = torch.zeros(B, G, slots + 1, dtype=torch.int64, device=chosen_BGT.device).scatter_(-1, place, source)
    return packed[..., :slots], chosen_BGT.sum(-1, dtype=torch.int32)


def take(x_BGTD: Tensor, source_BGW: Tensor) -> Tensor:
    """Rows `source` of each head: [B, G, W, D]."""
    return x_BGTD.gather(2, source_BGW[..., None].expand(*source_BGW.shape, x_BGTD.shape[-1]))


def victims(delta_BGW: Tensor, position_BGW: Tensor, count_BG: Tensor) -> tuple[Tensor, Tensor]:
    """The slot of the key that goes next, int64 [B, G, 1], and its delta [B, G, 1]: the smallest (delta, position)."""
    slot = torch.arange(delta_BGW.shape[-1], device=delta_BGW.device)
    live = slot < count_BG[..., None]
    smallest = delta_BGW.masked_fill(~live, float("inf")).amin(-1, keepdim=True)
    tied = live & (delta_BGW == smallest)
    return position_BGW.masked_fill(~tied, NO_POSITION).argmin(-1, keepdim=True), smallest


def insert(
    k_BGWD: Tensor,
    v_BGWD: Tensor,
    delta_BGW: Tensor,
    position_BGW: Tensor,
    count_BG: Tensor,
    seen_BG: Tensor,
    k_BG1D: Tensor,
    v_BG1D: Tensor,
    delta_BG1: Tensor,
    key_mask_B1: Tensor | None,
) -> None:
    """One new key for each head, in place: into a free slot, in the place of the key that it outranks, or nowhere."""
    usable = usable_keys(delta_BG1, key_mask_B1)
    free = count_BG[..., None] < delta_BGW.shape[-1]
    victim, smallest = victims(delta_BGW, position_BGW, count_BG)
    # The new key is the latest, so it outranks an equal delta.
    stays = usable & (free | (delta_BG1 >= smallest))
    slot = torch.where(free, count_BG[..., None].long(), victim)
    for buffer, new in ((delta_BGW, delta_BG1), (position_BGW, seen_BG[..., None])):
        buffer.scatter_(-1, slot, torch.where(stays, new, buffer.gather(-1, slot)))
    rows = slot[..., None].expand(*slot.shape, k_BGWD.shape[-1])
    for buffer, new in ((k_BGWD, k_BG1D), (v_BGWD, v_BG1D)):
        buffer.scatter_(2, rows, torch.where(stays[..., None], new, buffer.gather(2, rows)))
    count_BG += (stays & free)[..., 0]
    seen_BG += 1


def attend(q_BH1D: Tensor, k_BGWD: Tensor, v_BGWD: Tensor, delta_BGW: Tensor, count_BG: Tensor, scale: float) -> Tensor:
    """Attention of one query to the first `count` slots of each head: out [B, H, 1, D]."""
    slot = torch.arange(delta_BGW.shape[-1], device=delta_BGW.device)
    evict = (slot < count_BG[..., None]).int()  # as lifetimes: born at 0, seen by the query at 0
    birth, query = torch.zeros_like(evict), torch.zeros(1, dtype=torch.int32, device=q_BH1D.device)
    return reference.attend(q_BH1D, k_BGWD, v_BGWD, delta_BGW, birth, evict, scale, query)[0]
