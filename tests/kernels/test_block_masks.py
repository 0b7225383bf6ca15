"""Tile lists against ranges expanded one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmabench.kernels.block_masks import TileLists, tile_lists
from dmabench.kernels.plan import Tiles, make_plan

BY_BLOCK = ("kv_count", "kv_index", "full_kv_count", "full_kv_index")
BY_TILE = ("q_count", "q_index", "full_q_count", "full_q_index")


@st.composite
def _ranges(draw):
    """Tiles with any first <= full_first <= full_last <= last, dead tiles and tiles without a full block among them."""
    B, G, N = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 7))
    query_blocks = draw(st.integers(1, 9))
    corner = st.lists(st.integers(0, query_blocks), min_size=4, max_size=4).map(sorted)
    entry = st.one_of(st.just([0, 0, 0, 0]), corner, corner.map(lambda x: [x[0], x[0], x[0], x[3]]))
    cells = draw(st.lists(entry, min_size=B * G * N, max_size=B * G * N))
    first, full_first, full_last, last = torch.tensor(cells, dtype=torch.int32).view(B, G, N, 4).unbind(-1)
    return Tiles(16, 16, first, last, full_first, full_last), query_blocks


def _expand(tiles: Tiles, query_blocks: int) -> tuple[Tensor, Tensor]:
    """bool [B, G, Q, N]: partial and full, by walking every range."""
    B, G, N = tiles.first_BGN.shape
    partial, full = torch.zeros(2, B, G, query_blocks, N, dtype=torch.bool)
    for b in range(B):
        for g in range(G):
            for n in range(N):
                inside = range(int(tiles.full_first_BGN[b, g, n]), int(tiles.full_last_BGN[b, g, n]))
                for m in range(int(tiles.first_BGN[b, g, n]), int(tiles.last_BGN[b, g, n])):
                    (full if m in inside else partial)[b, g, m, n] = True
    return partial, full


def _check(count: Tensor, index: Tensor, expected: Tensor) -> None:
    """expected: bool [B, G, rows, columns]; the lists hold each row's columns, ascending, each once."""
    assert count.dtype == index.dtype == torch.int32
    assert count.shape == expected.shape[:-1] and index.shape[:-1] == expected.shape[:-1]
    assert torch.equal(count.long(), expected.sum(-1))
    # Entries behind the count are never read as tiles, but templates load them ahead of time: they must be in range.
    assert not index[torch.arange(index.shape[-1]) >= count[..., None]].any()
    for row in torch.cartesian_prod(*(torch.arange(n) for n in count.shape)).tolist():
        listed = index[tuple(row)][: count[tuple(row)]].tolist()
        assert listed == expected[tuple(row)].nonzero().flatten().tolist()


@settings(max_examples=80)
@given(_ranges())
def test_lists_are_the_expanded_ranges(drawn):
    tiles, query_blocks = drawn
    lists = tile_lists(tiles, query_blocks, by_tile=True)
    partial, full = _expand(tiles, query_blocks)
    _check(lists.kv_count, lists.kv_index, partial)
    _check(lists.full_kv_count, lists.full_kv_index, full)
    _check(lists.q_count, lists.q_index, partial.transpose(-1, -2))
    _check(lists.full_q_count, lists.full_q_index, full.transpose(-1, -2))
    # torch 2.11 steps through the full lists with the strides of the partial ones.
    assert lists.kv_index.shape == lists.full_kv_index.shape
    assert lists.q_index.shape == lists.full_q_index.shape
    assert lists.kv_index.stride() == lists.full_kv_index.stride()
    assert lists.q_index.stride() == lists.full_q_index.stride()
    # Static widths: a longer list cannot be.
    assert lists.kv_index.shape[-1] == tiles.first_BGN.shape[-1] and lists.q_index.shape[-1] == query_blocks


@given(_ranges())
def test_without_the_backward_the_lists_by_tile_are_left_out(drawn):
    tiles, query_blocks = drawn
    lists, both = tile_lists(tiles, query_blocks, by_tile=False), tile_lists(tiles, query_blocks, by_tile=True)
    assert all(getattr(lists, name) is None for name in BY_TILE)
    assert all(torch.equal(getattr(lists, name), getattr(both, name)) for name in BY_BLOCK)


@given(
    T=st.integers(1, 200),
    w=st.integers(1, 210),
    rows=st.floats(0, 1),
    block=st.sampled_from((8, 32)),
    seed=st.integers(0, 10**6),
)
def test_lists_of_a_plan_cover_every_live_pair_once(T, w, rows, block, seed):
    """The chain as dma/flex uses it: a live pair is in a listed tile, and a full tile has live pairs only."""
    query_len = max(1, round(rows * T))
    delta = torch.randn(1, 1, T, generator=torch.Generator().manual_seed(seed))
    plan = make_plan(delta, w, query_len=query_len)
    lists = tile_lists(plan.tiles(block, block), -(-query_len // block), by_tile=False)
    key, i = plan.order_BGT[0, 0].long(), torch.arange(T - query_len, T)[:, None]
    live = (key <= i) & (i < plan.evict_BGT[0, 0, key])
    listed = torch.zeros_like(live)
    for m in range(lists.kv_count.shape[-1]):
        partial = lists.kv_index[0, 0, m, : lists.kv_count[0, 0, m]].tolist()
        full = lists.full_kv_index[0, 0, m, : lists.full_kv_count[0, 0, m]].tolist()
        assert not set(partial) & set(full)
        for n in partial + full:
            tile = (slice(m * block, (m + 1) * block), slice(n * block, (n + 1) * block))
            listed[tile] = True
            if n in full:
                assert bool(live[tile].all())
    assert not bool((live & ~listed).any())


def _some_lists(G: int, by_tile: bool = True) -> TileLists:
    plan = make_plan(torch.randn(2, G, 100, generator=torch.Generator().manual_seed(0)), 30)
    return tile_lists(plan.tiles(16, 16), 7, by_tile)


@pytest.mark.parametrize("by_tile", [True, False])
def test_to_heads_repeats_the_lists_of_each_group(by_tile):
    lists = _some_lists(3, by_tile)
    heads = lists.to_heads(4)
    for name in BY_BLOCK + BY_TILE:
        mine, theirs = getattr(lists, name), getattr(heads, name)
        if mine is None:
            assert theirs is None and name in BY_TILE and not by_tile
            continue
        assert theirs.shape[1] == 12
        for h in range(12):
            assert torch.equal(theirs[:, h], mine[:, h // 4])


def test_to_heads_leaves_lists_alone_that_serve_all_heads():
    lists = _some_lists(3)
    assert lists.to_heads(1) is lists
    one = _some_lists(1)
    assert one.to_heads(4) is one  # a list for one head is read for every head


def test_names_are_those_of_a_block_mask():
    from torch.nn.attention.flex_attention import BlockMask

    lists = _some_lists(2)
    mask = BlockMask((100, 100), **lists.tensors(), BLOCK_SIZE=(16, 16), mask_mod=lambda b, h, i, j: i >= j)
    assert mask.kv_indices is lists.kv_index and mask.full_kv_num_blocks is lists.full_kv_count
    assert mask.q_num_blocks is lists.q_count and mask.full_q_indices is lists.full_q_index
    partial, full = _expand(
        make_plan(torch.randn(2, 2, 100, generator=torch.Generator().manual_seed(0)), 30).tiles(16, 16), 7
    )
    assert torch.equal(mask.to_dense().bool(), partial | full)  # torch's own reading of the lists
