"""The order of keys: against a k-d tree in plain Python, and what it is for, fewer executed pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmabench.kernels import make_plan
from dmabench.kernels.key_order import LEAF, SLAB, order_by_lifetime
from dmabench.kernels.plan import make_tiles


def _halved(keys: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """(birth, evict, position) in the order of a k-d tree; a dead key's birth and evict are infinite."""
    if len(keys) <= LEAF:
        return keys
    live = [key for key in keys if key[0] < float("inf")]
    widths = [max(key[side] for key in live) - min(key[side] for key in live) if live else 0 for side in (0, 1)]
    side = 0 if widths[0] >= widths[1] else 1
    keys = sorted(keys, key=lambda key: (key[side], key[2]))
    return _halved(keys[: len(keys) // 2]) + _halved(keys[len(keys) // 2 :])


def _in_plain_python(birth: list[int], evict: list[int]) -> list[int]:
    never = float("inf")
    live = [(birth[j], evict[j], j) for j in range(len(birth)) if evict[j] > birth[j]]
    dead = [(never, never, j) for j in range(len(birth)) if evict[j] <= birth[j]]
    keys = live + dead
    keys += [(never, never, len(birth))] * (-len(birth) % SLAB)
    ordered = [key for start in range(0, len(keys), SLAB) for key in _halved(keys[start : start + SLAB])]
    return [position for _, _, position in ordered if position < len(birth)]


def _lifetimes(T: int, w: int, kind: str, seed: int, query_len: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(1, 2, T, generator=generator)
    if kind == "rising":
        delta += torch.linspace(0, 4, T)
    elif kind == "constant":
        delta = torch.zeros(1, 2, T)
    key_mask = torch.arange(T)[None] >= T // 3 if kind == "padded" else None
    plan = make_plan(delta, w, key_mask=key_mask, query_len=query_len)
    return plan.birth_BGT, plan.evict_BGT


@pytest.mark.parametrize("kind", ["iid", "rising", "constant", "padded"])
@pytest.mark.parametrize(("T", "w", "query_len"), [(1, 1, 1), (65, 1, 65), (2048, 30, 2048), (4700, 700, 3000)])
def test_order_is_that_of_a_k_d_tree_within_slabs(T, w, query_len, kind):
    birth, evict = _lifetimes(T, w, kind, T, query_len)
    found = order_by_lifetime(birth, evict)
    assert found.dtype == torch.int32
    for g in range(2):
        assert found[0, g].tolist() == _in_plain_python(birth[0, g].tolist(), evict[0, g].tolist())


@settings(max_examples=30)
@given(T=st.integers(1, 3 * SLAB), dead=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_dead_keys_are_last_by_position(T, dead, seed):
    """Any lifetimes at all, also such as no delta gives."""
    generator = torch.Generator().manual_seed(seed)
    birth = torch.randint(T + 1, (2, 1, T), generator=generator, dtype=torch.int32)
    evict = birth + torch.randint(1, T + 2, (2, 1, T), generator=generator, dtype=torch.int32)
    is_dead = torch.rand(2, 1, T, generator=generator) < dead
    evict = torch.where(is_dead, birth - (birth % 2), evict)
    order = order_by_lifetime(birth, evict).long()
    for b in range(2):
        live = int((~is_dead[b, 0]).sum())
        assert not is_dead[b, 0, order[b, 0, :live]].any()
        assert order[b, 0, live:].tolist() == is_dead[b, 0].nonzero().flatten().tolist()
        assert torch.equal(order[b, 0].sort().values, torch.arange(T))


def _executed(birth: Tensor, evict: Tensor, order: Tensor) -> int:
    birth, evict = (x.gather(-1, order.long()) for x in (birth, evict))
    T = birth.shape[-1]
    tiles = make_tiles(birth, evict, query_offset=0, query_len=T, block_q=128, block_k=64)
    return int(tiles.executed_pairs())


@pytest.mark.parametrize("kind", ["iid", "rising"])
def test_fewer_pairs_are_executed_than_in_the_order_of_positions(kind):
    birth, evict = _lifetimes(8192, 512, kind, 0)
    positions = torch.arange(8192).expand(birth.shape)
    by_position = torch.sort((evict <= birth).int(), dim=-1, stable=True).indices  # without the dead keys
    executed = _executed(birth, evict, order_by_lifetime(birth, evict))
    assert executed <= 0.75 * _executed(birth, evict, by_position)
    assert executed <= 0.75 * _executed(birth, evict, positions)
    kept = 2 * (8192 * 512 - 512 * 511 // 2)
    assert kept <= executed <= 1.8 * kept


def test_constant_delta_is_already_in_order():
    """A sliding window: lifetimes grow with the position, and no order beats that."""
    birth, evict = _lifetimes(4096, 256, "constant", 0)
    assert torch.equal(order_by_lifetime(birth, evict), torch.arange(4096, dtype=torch.int32).expand(birth.shape))
