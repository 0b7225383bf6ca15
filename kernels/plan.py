"""A plan: everything about the mask that backends need, made once from delta and shared by forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dmabench.kernels import fused_plan
from dmabench.kernels.key_lists import BLOCK_Q, KeyLists, key_lists, list_width
from dmabench.kernels.key_order import order_by_lifetime
from dmabench.kernels.lifetimes import eviction_times


@dataclass(frozen=True)
class Tiles:
    """Which query blocks each tile of `block_k` reordered keys touches. Every range is [first, last) in query blocks.

    A tile's range is the hull of its keys' lifetimes, which is nearly always their union: at T = 131072 the two differ
    by less than 1% of tiles for every delta distribution of the benchmark (counted on the CPU, 2026-11-23).
    """

    block_q: int
    block_k: int
    first_BGN: Tensor
    """int32 [B, G, ceil(Tk / block_k)]; a tile of dead keys has first == last == 0."""
    last_BGN: Tensor
    full_first_BGN: Tensor
    """Within [full_first, full_last) every key of the tile is live for every query: no mask arithmetic needed."""
    full_last_BGN: Tensor

    def executed_pairs(self) -> Tensor:
        """Query-key pairs in active tiles, summed over batch and key/value heads (int64 scalar on the device)."""
        return (self.last_BGN - self.first_BGN).sum(dtype=torch.int64) * (self.block_q * self.block_k)

    def step_ends(self, groups: int, rows: int, query_len: int) -> Tensor:
        """int64 [B * G * N]: how many steps all tiles up to and with each take, for those who share them evenly.

        A step is `rows` queries of one of the `groups` query heads that share the keys. A tile of dead keys counts as
        one: somebody has to write its zeros.
        """
        per_block = self.block_q // rows
        steps = (self.last_BGN * per_block).clamp(max=-(-query_len // rows)) - self.first_BGN * per_block
        return (steps * groups).clamp_(min=1).flatten().cumsum(0, dtype=torch.int64)


@dataclass(frozen=True)
class Plan:
    """The whole mask of one delta in O(Tk) memory; make it with `make_plan`."""

    window: int
    query_len: int
    evict_BGT: Tensor
    """int32 [B, G, Tk], by key position: key j is attended by queries at positions [j, evict)."""
    finite_parts: Tensor
    """bool on the device, of any shape: `finite` when all hold."""
    alive: tuple[Tensor, Tensor] | None = None
    """What fused_plan.key_lists starts from, where the fused plan made it."""
    _derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key_len(self) -> int:
        return self.evict_BGT.shape[-1]

    @property
    def query_offset(self) -> int:
        """Position of the first query: the queries are the last `query_len` of the keys' positions."""
        return self.key_len - self.query_len

    @cached_property
    def finite(self) -> Tensor:
        """bool scalar on the device: no key outside the padding has a NaN or infinite delta."""
        return self.finite_parts.all()

    @cached_property
    def birth_BGT(self) -> Tensor:
        """int32 [B, G, Tk], by key position: the first position among the queries that may attend to the key."""
        position = torch.arange(self.key_len, dtype=torch.int32, device=self.evict_BGT.device)
        return position.clamp(min=self.query_offset).expand_as(self.evict_BGT)

    @cached_property
    def live_BGT(self) -> Tensor:
        """bool [B, G, Tk], by key position: some query attends to this key."""
        return self.evict_BGT > self.birth_BGT

    @cached_property
    def live_count_BG(self) -> Tensor:
        """int64 [B, G]: how many keys some query attends to."""
        return self.live_BGT.sum(-1)

    @property
    def gathers(self) -> bool:
        """Whether queries attend to so few of the keys that gathering them by list pays. If not, keys stay in the
        order of their positions, where causal attention is dense anyway, and no list is made."""
        return pays_to_gather(self.window, self.key_len)

    @cached_property
    def order_BGT(self) -> Tensor:
        """int32 [B, G, Tk]: key positions in the order in which `tiles` cuts them: keys with similar lifetimes side by
        side and dead keys last (see key_order.py); the order of positions where `gathers` is False."""
        if self.gathers:
            if fused_plan.usable(self.evict_BGT):
                return fused_plan.order(self.evict_BGT, self.query_len)
            return order_by_lifetime(self.birth_BGT, self.evict_BGT)
        position = torch.arange(self.key_len, dtype=torch.int32, device=self.evict_BGT.device)
        return position.expand(self.evict_BGT.shape).contiguous()

    def key_lists(self) -> KeyLists:
        """For each block of 128 queries the keys that it attends to; made once. For plans with `gathers`."""

        def make() -> KeyLists:
            if self.alive is None:
                return key_lists(self)
            return KeyLists(*fused_plan.key_lists(self.evict_BGT, *self.alive, self.window, self.query_len))

        return self.derived("key lists", make)

    def references(self, delta_BGT: Tensor, rows: bool = False) -> Tensor:
        """For each block of 128 queries a delta to take scores relative to, float32 [B, G, ceil(query_len / 128)]: the
        largest that the block's first query attends to (0 where there is none). With `rows` the largest that each query
        attends to, [B, G, query_len]. Made once for a delta.

        Softmax does not change when a row's scores move together, but float32 does: importances of the paper's form
        reach millions, where neighbouring numbers are 0.25 apart.
        """

        def make() -> Tensor:
            if fused_plan.usable(delta_BGT):
                return fused_plan.references(delta_BGT, self.evict_BGT, self.query_len, rows)
            position = torch.arange(self.key_len, device=delta_BGT.device)
            attended = delta_BGT.detach().masked_fill(self.evict_BGT <= position, -torch.inf)
            found = attended.cummax(-1).values[..., self.query_offset :: 1 if rows else BLOCK_Q]
            return found.masked_fill(found.isinf(), 0.0).float().contiguous()

        if torch.compiler.is_compiling():
            return make()
        # The bias may be another delta than the one that the plan was made from. Holding it keeps its address its own.
        mark = _mark(delta_BGT)
        held = self._derived.get(("references", rows))
        if held is None or held[0] != mark:
            held = self._derived["references", rows] = (mark, make(), delta_BGT.detach())
        return held[1]

    def tiles(self, block_q: int, block_k: int) -> Tiles:
        """Query-block ranges of the reordered keys in tiles of `block_k`; made once a size, all on the device."""

        def make() -> Tiles:
            if fused_plan.usable(self.evict_BGT):
                ranges = fused_plan.tiles(self.order_BGT, self.evict_BGT, self.query_len, block_q, block_k)
                return Tiles(block_q, block_k, *ranges.unbind())
            order = self.order_BGT.long()
            birth, evict = (x.gather(-1, order) for x in (self.birth_BGT, self.evict_BGT))
            return make_tiles(
                birth,
                evict,
                query_offset=self.query_offset,
                query_len=self.query_len,
                block_q=block_q,
                block_k=block_k,
            )

        return self.derived(("tiles", block_q, block_k), make)

    def require_finite(self) -> None:
        """Read the flag from the device (one synchronisation); ValueError if a delta is NaN or infinite."""
        if not bool(self.finite):
            raise ValueError(
                "delta has NaN or infinite values: check the gate and the values it is computed from "
                "(with parametrisation='exp' a large gate overflows; 'linear' does not)"
            )

    def step_ends(self, block_q: int, block_k: int, groups: int, rows: int) -> Tensor:
        """Tiles.step_ends of these tiles, made once."""
        key = ("step ends", block_q, block_k, groups, rows)
        return self.derived(key, lambda: self.tiles(block_q, block_k).step_ends(groups, rows, self.query_len))

    def derived(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for `key` and kept with the plan: for what a backend converts."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]


def make_plan(delta_BGT: Tensor, window: int, *, key_mask: Tensor | None = None, query_len: int | None = None) -> Plan:
    """Plan the attention of the last `query_len` positions to the `window` most important keys of each prefix.

    Args:
        delta_BGT: importance [B, G, Tk], float32 (float64 in tests). It is the ranking key exactly as given.
        window: keys a query may attend to, an int >= 1; more than Tk is causal attention with a bias.
        key_mask: optional bool [B, Tk]; False marks padding.
        query_len: how many queries there are, at the end of the keys' positions; default Tk.

    Raises:
        ValueError: a shape, dtype, window or length that does not fit.
    """
    if delta_BGT.dim() != 3 or delta_BGT.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"delta must be float32 [B, G, T] whatever the dtype of q, got {delta_BGT.dtype} {tuple(delta_BGT.shape)}"
        )
    B, _, key_len = delta_BGT.shape
    query_len = key_len if query_len is None else query_len
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be an int of at least 1, got {window!r}: each query attends to itself or more")
    if not 1 <= query_len <= key_len:
        raise ValueError(f"query_len must be in 1..{key_len} (the number of keys), got {query_len}")
    if key_mask is not None and (key_mask.shape != (B, key_len) or key_mask.dtype != torch.bool):
        raise ValueError(
            f"key_mask must be bool {(B, key_len)}, True for real keys; got {key_mask.dtype} {tuple(key_mask.shape)}"
        )
    if fused_plan.usable(delta_BGT) and delta_BGT.dtype == torch.float32:
        listing = pays_to_gather(window, key_len)
        evict, finite, *alive, references = fused_plan.evictions(delta_BGT, window, key_mask, query_len, listing)
        plan = Plan(window, query_len, evict, finite, (alive[0], alive[1]) if listing else None)
        if not torch.compiler.is_compiling():
            plan._derived["references", False] = (_mark(delta_BGT), references, delta_BGT.detach())
        return plan
    finite = delta_BGT.detach().isfinite()
    if key_mask is not None:
        finite |= ~key_mask[:, None, :]
    return Plan(window, query_len, eviction_times(delta_BGT, window, key_mask), finite.all())


def _mark(x: Tensor) -> tuple:
    """Tells a tensor's values from those of others, for as long as it is held."""
    return x.data_ptr(), x.stride(), x._version


def pays_to_gather(window: int, key_len: int) -> bool:
    """Whether a window is so much shorter than the sequence that plans have lists of keys."""
    return 2 * list_width(window, key_len) <= key_len


def make_tiles(
    birth_BGK: Tensor, evict_BGK: Tensor, *, query_offset: int, query_len: int, block_q: int, block_k: int
) -> Tiles:
    """Query-block ranges of keys in the order given, `block_k` at a time.

    Args:
        birth_BGK, evict_BGK: int [B, G, K], positions as in a Plan; evict <= birth marks a dead key.
        query_offset, query_len: the queries are at positions [query_offset, query_offset + query_len).
    """
    padding = (0, -birth_BGK.shape[-1] % block_k)
    live = torch.nn.functional.pad(evict_BGK > birth_BGK, padding)

    def by_tile(positions_BGK: Tensor, for_dead: int) -> Tensor:
        """Query rows cut into tiles, dead keys replaced."""
        rows = torch.nn.functional.pad(positions_BGK - query_offset, padding)
        return torch.where(live, rows, for_dead).unflatten(-1, (-1, block_k))

    never = query_len + block_q
    first = by_tile(birth_BGK, never).amin(-1) // block_q
    last = (by_tile(evict_BGK, 0).amax(-1) + block_q - 1) // block_q
    full_first = (by_tile(birth_BGK, never).amax(-1) + block_q - 1) // block_q
    earliest_evict = by_tile(evict_BGK, 0).amin(-1)
    # The last query block may hang over the end: rows that do not exist are as good as live.
    full_last = torch.where(earliest_evict >= query_len, last, earliest_evict // block_q)
    first = torch.where(last == 0, 0, first)  # a tile of dead keys alone
    no_full = full_last <= full_first
    full_first, full_last = torch.where(no_full, first, full_first), torch.where(no_full, first, full_last)
    return Tiles(block_q, block_k, first, last, full_first, full_last)
