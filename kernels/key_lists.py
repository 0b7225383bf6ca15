"""Key lists: for each block of queries, the positions of the keys that any of them attends to.

A block of 128 queries sees at most window + 127 distinct keys, whatever delta is, and nearly all of them live
throughout it. So attention that gathers its keys by such a list does next to no work in vain, at the price of an
index of that static size. Measured against reordered tiles in results/LOG.md.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmabench.kernels.plan import Plan

BLOCK_Q = 128
"""Queries a list serves."""
_PADDING = 128
_SLICE = 1 << 24
"""Elements of (query blocks x keys) looked at together by the tensor operations below."""


@dataclass(frozen=True)
class KeyLists:
    """Lists for blocks of BLOCK_Q queries; Q = ceil(query_len / BLOCK_Q), L = `list_width(...)`."""

    keys_BGQL: Tensor
    """int32 positions, those that every query of the block attends to first, ascending within each of the two parts;
    entries from `count` on are unspecified."""
    full_BGQ: Tensor
    """int32: how many keys at the front are live for every query of the block (rows past the end count as live)."""
    count_BGQ: Tensor
    """int32: how many keys some query of the block attends to."""

    def executed_pairs(self, block_k: int) -> Tensor:
        """Query-key pairs computed where lists are taken `block_k` keys at a time, summed over batch and key/value
        heads (int64 scalar on the device)."""
        return ((self.count_BGQ + block_k - 1) // block_k).sum(dtype=torch.int64) * (BLOCK_Q * block_k)


def list_width(window: int, key_len: int) -> int:
    """Room for one list: no block of BLOCK_Q queries sees more keys than this. A multiple of 128."""
    return -(-min(window + BLOCK_Q - 1, key_len) // _PADDING) * _PADDING


def key_lists(plan: "Plan") -> KeyLists:
    """The lists of a plan in tensor operations, a few query blocks at a time: for any device, not fast."""
    B, G, T = plan.evict_BGT.shape
    device = plan.evict_BGT.device
    width, blocks = list_width(plan.window, T), -(-plan.query_len // BLOCK_Q)
    first_rows = plan.query_offset + BLOCK_Q * torch.arange(blocks, device=device)
    position = torch.arange(T, device=device)
    evict = plan.evict_BGT[:, :, None, :]
    keys, full, count = [], [], []
    for first in first_rows.split(max(1, _SLICE // (B * G * T))):
        first = first[:, None]
        last = (first + BLOCK_Q - 1).clamp(max=T - 1)
        some = (position <= last) & (evict > first) & (evict > position)
        throughout = some & (position <= first) & (evict > last)
        rank = 2 - some.to(torch.int8) - throughout.to(torch.int8)
        listed = torch.sort(rank, dim=-1, stable=True).indices[..., :width]
        keys.append(torch.nn.functional.pad(listed.to(torch.int32), (0, width - listed.shape[-1])))
        full.append(throughout.sum(-1, dtype=torch.int32))
        count.append(some.sum(-1, dtype=torch.int32))
    return KeyLists(torch.cat(keys, 2), torch.cat(full, 2), torch.cat(count, 2))
