"""Which queries see which key: one integer a key (shared/design of the operator: keys have lifetimes).

delta does not depend on the query and a prefix only grows, so a key's rank within the prefix only falls. Key j is
attended by exactly the queries i in [j, evict[j]), where evict[j] is the first i at which `window` keys of 0..i
outrank j (higher delta; among equals the later position). The whole T x T mask is therefore one integer a key.
"""

import heapq

import torch
from torch import Tensor


def eviction_times(delta_BGT: Tensor, window: int, key_mask_BT: Tensor | None = None) -> Tensor:
    """The query position at which each key stops being attended, exactly, in tensor operations on any device.

    Ranks the keys by (delta, position), finds the rank of the window-th best key of every prefix, and looks each
    key's own rank up in that non-decreasing sequence.

    Args:
        delta_BGT: importance [B, G, T], float32 (or float64). NaN ranks last and is never attended.
        window: how many keys a query may attend to, >= 1.
        key_mask_BT: optional bool [B, T]; False marks padding: never attended, never counted.

    Returns:
        int32 [B, G, T] in [j, T]: T means never evicted, j (its own position) means never attended.
    """
    B, G, T = delta_BGT.shape
    delta = delta_BGT.detach().contiguous() + 0.0  # -0.0 equals +0.0
    usable = ~delta.isnan()
    if key_mask_BT is not None:
        usable &= key_mask_BT[:, None, :]
    position = torch.arange(T, dtype=torch.int32, device=delta.device)
    if window >= T:
        return torch.where(usable, T, position)
    order = torch.sort(_sort_keys(delta, usable).reshape(B * G, T), dim=-1, stable=True).indices
    rank = torch.empty_like(order).scatter_(-1, order, position.long().expand(B * G, T))
    # Unusable keys hold the lowest ranks, so they reach the threshold only while a prefix has fewer than `window`
    # usable keys, and then evict nobody.
    threshold = torch.full_like(rank, -1)
    threshold[:, window - 1 :] = _kth_largest_of_prefixes(rank, window)
    evict = torch.searchsorted(threshold, rank, right=True).to(torch.int32).view(B, G, T)
    return torch.where(usable, torch.maximum(evict, position), position)


def _sort_keys(delta: Tensor, usable: Tensor) -> Tensor:
    """Integers ordered like delta, with every unusable key below every usable one (minus infinity included)."""
    integer = torch.int64 if delta.dtype == torch.float64 else torch.int32
    bits = delta.contiguous().view(integer)
    ordered = torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits)
    return torch.where(usable, ordered, torch.iinfo(integer).min)


def _kth_largest_of_prefixes(rank_NT: Tensor, k: int) -> Tensor:
    """The k-th largest of rank[:, 0..i] for every i in k-1..T-1, by descending a wavelet matrix.

    One round a bit, highest first: the ranks are split stably by that bit, and a running count of ones tells how many
    of a prefix's candidates have it set; each prefix then follows its k-th largest to one side or the other.

    Args:
        rank_NT: int64 [N, T], each row a permutation of 0..T-1.

    Returns:
        int64 [N, T - k + 1].
    """
    N, T = rank_NT.shape
    values = rank_NT
    end = torch.arange(k, T + 1, device=values.device).expand(N, -1)  # candidates of a prefix: [start, end) of `values`
    start = torch.zeros_like(end)
    wanted = torch.full_like(end, k)
    found = torch.zeros_like(end)
    position = torch.arange(T, device=values.device)
    for bit in reversed(range((T - 1).bit_length())):
        is_one = (values >> bit) & 1
        ones_before = torch.nn.functional.pad(is_one.cumsum(-1), (1, 0))
        zeros = T - ones_before[:, -1:]
        ones_to_start, ones_to_end = ones_before.gather(-1, start), ones_before.gather(-1, end)
        ones = ones_to_end - ones_to_start
        go_one = ones >= wanted
        start = torch.where(go_one, zeros + ones_to_start, start - ones_to_start)
        end = torch.where(go_one, zeros + ones_to_end, end - ones_to_end)
        wanted = torch.where(go_one, wanted, wanted - ones)
        found |= go_one.to(found.dtype) << bit
        destination = torch.where(is_one == 1, zeros + ones_before[:, :-1], position - ones_before[:, :-1])
        values = torch.empty_like(values).scatter_(-1, destination, values)
    return found


def eviction_times_by_heap(delta_BGT: Tensor, window: int, key_mask_BT: Tensor | None = None) -> Tensor:
    """The same integers from the definition, one key after another with a heap; shares no code with the above.

    It is what the correctness gate and the tests compare with: O(T log window) on one core (about 1 us a key).
    """
    B, G, T = delta_BGT.shape
    evict = torch.arange(T, dtype=torch.int32).repeat(B, G, 1)
    for b in range(B):
        usable = [True] * T if key_mask_BT is None else key_mask_BT[b].tolist()
        for g in range(G):
            evict_row = list(range(T))
            live: list[tuple[float, int]] = []  # the smallest pair is the next key to go; ties: the earlier goes first
            for i, value in enumerate(delta_BGT[b, g].tolist()):
                if not usable[i] or value != value:
                    continue
                heapq.heappush(live, (value, i))
                if len(live) > window:
                    evict_row[heapq.heappop(live)[1]] = i
            for _, j in live:
                evict_row[j] = T
            evict[b, g] = torch.tensor(evict_row, dtype=torch.int32)
    return evict.to(delta_BGT.device)
