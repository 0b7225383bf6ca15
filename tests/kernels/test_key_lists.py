"""Key lists against the definition: from eviction times alone, one query block after another."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmabench.kernels import Plan, make_plan
from dmabench.kernels import key_lists as module
from dmabench.kernels.key_lists import BLOCK_Q, key_lists, list_width


def _plan(B: int, G: int, T: int, w: int, query_len: int, kind: str, seed: int) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(B, G, T, generator=generator)
    key_mask = None
    if kind == "constant":
        delta = torch.ones(B, G, T)
    elif kind in ("rising", "falling"):
        delta = delta + torch.linspace(0, 5 if kind == "rising" else -5, T)
    elif kind == "left":
        key_mask = torch.arange(T) >= torch.randint(T + 1, (B, 1), generator=generator)
    elif kind == "right":
        key_mask = torch.arange(T) < torch.randint(T + 1, (B, 1), generator=generator)
    elif kind == "nan":
        delta[torch.rand(B, G, T, generator=generator) < 0.3] = torch.nan
    return make_plan(delta, w, key_mask=key_mask, query_len=query_len)


def _expected(plan: Plan, b: int, g: int, block: int) -> tuple[list[int], list[int]]:
    """The keys that every query of the block attends to, and those that only some do; ascending."""
    evict = plan.evict_BGT[b, g].tolist()
    first = plan.query_offset + block * BLOCK_Q
    queries = range(first, min(first + BLOCK_Q, plan.key_len))
    live = [[j <= i < evict[j] for i in (queries[0], queries[-1])] for j in range(plan.key_len)]
    throughout = [j for j, (at_first, at_last) in enumerate(live) if at_first and at_last]
    some = [j for j in range(queries[-1] + 1) if evict[j] > max(j, queries[0])]
    return throughout, sorted(set(some) - set(throughout))


def _check(plan: Plan) -> None:
    lists = key_lists(plan)
    B, G, T = plan.evict_BGT.shape
    blocks, width = -(-plan.query_len // BLOCK_Q), list_width(plan.window, T)
    assert lists.keys_BGQL.shape == (B, G, blocks, width) and lists.count_BGQ.shape == (B, G, blocks)
    assert lists.full_BGQ.shape == (B, G, blocks)
    assert lists.keys_BGQL.dtype == lists.full_BGQ.dtype == lists.count_BGQ.dtype == torch.int32
    for b in range(B):
        for g in range(G):
            for block in range(blocks):
                throughout, some = _expected(plan, b, g, block)
                assert len(throughout) + len(some) <= min(plan.window + BLOCK_Q - 1, T) <= width
                full, count = int(lists.full_BGQ[b, g, block]), int(lists.count_BGQ[b, g, block])
                assert (full, count) == (len(throughout), len(throughout) + len(some))
                assert lists.keys_BGQL[b, g, block, :count].tolist() == throughout + some


@settings(max_examples=60)
@given(
    B=st.integers(1, 2),
    G=st.integers(1, 2),
    T=st.integers(1, 700),
    w=st.one_of(st.integers(1, 10), st.integers(1, 300), st.just(1000)),
    rows=st.floats(0, 1),
    kind=st.sampled_from(("iid", "constant", "rising", "falling", "left", "right", "nan")),
    seed=st.integers(0, 10**6),
)
@example(1, 1, 1, 1, 1.0, "iid", 0)
@example(1, 2, 129, 1, 1.0, "rising", 0)
@example(2, 1, 600, 40, 0.5, "left", 1)
@example(2, 1, 600, 40, 0.2, "right", 2)
@example(1, 1, 641, 129, 1.0, "constant", 3)
def test_lists_are_what_the_eviction_times_say(B, G, T, w, rows, kind, seed):
    _check(_plan(B, G, T, w, max(1, round(rows * T)), kind, seed))


def test_a_few_query_blocks_at_a_time_change_nothing(monkeypatch):
    monkeypatch.setattr(module, "_SLICE", 2 * 900 * 2)  # two of them
    _check(_plan(2, 1, 900, 70, 700, "iid", 0))


def test_a_key_is_full_only_while_it_lives_throughout_the_block():
    """Four keys by hand: one lives on, one into the second block, one as long as the first, one for a single query."""
    T = 2 * BLOCK_Q
    evict = torch.arange(T, dtype=torch.int32)  # dead
    evict[0], evict[1], evict[2], evict[200] = T, BLOCK_Q + 1, BLOCK_Q, 201
    lists = key_lists(Plan(4, T, evict[None, None], torch.tensor(True)))
    assert lists.keys_BGQL[0, 0, 0, :3].tolist() == [0, 1, 2]  # 1 and 2 are born within the first block
    assert (lists.full_BGQ[0, 0, 0], lists.count_BGQ[0, 0, 0]) == (1, 3)
    assert lists.keys_BGQL[0, 0, 1, :3].tolist() == [0, 1, 200]
    assert (lists.full_BGQ[0, 0, 1], lists.count_BGQ[0, 0, 1]) == (1, 3)


def test_rows_past_the_end_count_as_live():
    evict = torch.full((1, 1, BLOCK_Q + 10), BLOCK_Q + 10, dtype=torch.int32)
    lists = key_lists(Plan(1000, BLOCK_Q + 10, evict, torch.tensor(True)))
    assert lists.full_BGQ[0, 0].tolist() == [1, BLOCK_Q + 1] and lists.count_BGQ[0, 0].tolist() == [128, 138]


@pytest.mark.parametrize(
    ("window", "key_len", "width"),
    [(1, 1, 128), (1, 10000, 128), (2, 10000, 256), (1024, 10000, 1152), (1024, 500, 512)],
)
def test_the_width_holds_every_list(window, key_len, width):
    assert list_width(window, key_len) == width


def test_the_lists_of_a_plan_hold_every_live_pair():
    """Through the plan, whichever code makes them there, and made once."""
    plan = _plan(2, 2, 700, 50, 600, "iid", 0)
    lists = plan.key_lists()
    assert plan.key_lists() is lists
    listed = torch.zeros(2, 2, 600, 700, dtype=torch.bool)
    for row in torch.cartesian_prod(*(torch.arange(n) for n in lists.count_BGQ.shape)).tolist():
        b, g, block = row
        keys = lists.keys_BGQL[b, g, block, : int(lists.count_BGQ[b, g, block])].long()
        listed[b, g, block * BLOCK_Q : (block + 1) * BLOCK_Q, keys] = True
    i, j = torch.arange(plan.query_offset, plan.key_len)[:, None], torch.arange(plan.key_len)
    live = (j <= i) & (i < plan.evict_BGT[..., None, :])
    assert not bool((live & ~listed).any())
