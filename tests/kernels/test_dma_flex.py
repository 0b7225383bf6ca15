"""dma/flex: the compiled forward on a CPU, the backward evaluated eagerly, what it takes from the plan and when.

Each distinct shape compiles for seconds, so there are few. The backward on a GPU is in test_gpu.py.
"""

import pytest
import torch

from dmabench.kernels import Plan, Problem, block_masks, dma_flex, dynamic_mask_attention, flex, make_plan, registry


def test_odd_length_grouped_heads_and_padding(compiler, inputs, close):
    q, k, v, delta = inputs(2, 4, 2, 333, 333, 64)
    key_mask = torch.ones(2, 333, dtype=torch.bool)
    key_mask[0, 300:], key_mask[1, :40] = False, False
    delta[0, 1, 310] = torch.nan  # in the padding: multiplied by nothing, added to nothing
    out = dynamic_mask_attention(q, k, v, delta, 50, key_mask=key_mask, backend="flex")
    close(out, dynamic_mask_attention(q, k, v, delta, 50, key_mask=key_mask, backend="reference"))
    assert not out[1, :, :40].any()  # rows without a live key

    # The same shapes, so nothing compiles again: a NaN that no padding hides is never attended.
    delta[0, 1, 310], delta[0, 0, 100] = 1.0, torch.nan
    without = torch.arange(333) != 100
    out = dynamic_mask_attention(q, k, v, delta, 50, backend="flex")
    assert bool(out.isfinite().all())
    expected = dynamic_mask_attention(
        q, k, v, delta.nan_to_num(), 50, key_mask=without.expand(2, -1), backend="reference"
    )
    close(out[0, :2], expected[0, :2])


def test_fewer_queries_than_keys_and_a_padded_head_dim(compiler, inputs, close):
    q, k, v, delta = inputs(1, 2, 2, 150, 333, 48)
    out = dynamic_mask_attention(q, k, v, delta, 70, backend="flex")
    close(out, dynamic_mask_attention(q, k, v, delta, 70, backend="reference"))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    close(dynamic_mask_attention(*strided, delta, 70, backend="flex"), out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(compiler, inputs, close, dtype):
    q, k, v, delta = inputs(1, 2, 1, 200, 200, 32, dtype)
    out = dynamic_mask_attention(q, k, v, delta, 20, backend="flex")
    assert out.dtype == dtype
    close(out, dynamic_mask_attention(q.double(), k.double(), v.double(), delta, 20))


@pytest.mark.parametrize(
    ("Tq", "T", "w", "padded"), [(300, 300, 40, False), (170, 300, 60, True), (300, 300, 1, False)]
)
def test_backward_is_exact(eager_dma_flex, inputs, grads, close, Tq, T, w, padded):
    leaves = inputs(2, 4, 2, Tq, T, 16, torch.float64, grad=True)
    q, k, v, delta = leaves
    key_mask = torch.arange(T)[None] >= torch.tensor([[0], [35]]) if padded else None
    plan = make_plan(delta, w, key_mask=key_mask, query_len=Tq)
    out = eager_dma_flex(q, k, v, delta=delta, plan=plan, scale=0.25)
    expected = dynamic_mask_attention(*leaves, w, plan=plan, scale=0.25, backend="reference")
    close(out, expected)
    names = ("dq", "dk", "dv", "ddelta")
    found, right = grads(out, leaves), grads(expected, leaves)
    for name, mine, theirs in zip(names, found, right, strict=True):
        assert mine.dtype == theirs.dtype
        close(mine, theirs, torch.float32 if name == "ddelta" else None, name)
    for x in found[1:]:
        assert not x[~plan.live_BGT].any()  # exactly zero


def test_a_dead_keys_nan_poisons_neither_output_nor_gradient(eager_dma_flex, inputs, grads, close):
    leaves = inputs(1, 4, 2, 200, 200, 16, torch.float64, grad=True)
    with torch.no_grad():
        # One head without dead keys (rising), so that as many slots are kept as there are keys and the NaN is in one.
        leaves[3][0, 0] = torch.linspace(1, 2, 200)
        leaves[3][0, 1, 60] = torch.nan
    plan = make_plan(leaves[3], 30)
    assert dma_flex._keys(plan)[0].shape[-1] == 200
    found = grads(eager_dma_flex(*leaves[:3], delta=leaves[3], plan=plan, scale=0.25), leaves)
    unflagged = Plan(30, 200, plan.evict_BGT, torch.tensor(True))  # else the reference would refuse
    expected = dynamic_mask_attention(*leaves, 30, plan=unflagged, scale=0.25, backend="reference")
    for mine, right in zip(found, grads(expected, leaves), strict=True):
        assert bool(mine.isfinite().all())
        close(mine, right)
    assert not found[3][0, 1, 60].any()


def test_no_nan_of_a_dead_key_is_handed_to_the_kernel(monkeypatch, inputs):
    """A kernel may add the bias before it masks, and a NaN times zero would stay."""
    seen = []
    monkeypatch.setattr(flex, "attend", lambda *args: (seen.append(args[3]), (args[0], None))[1])
    q, k, v, delta = inputs(1, 2, 1, 200, 200, 16)
    delta[0, 0, 50], delta[0, 0, 60] = torch.nan, torch.inf
    plan = make_plan(delta, 200, key_mask=torch.arange(200)[None] != 60)
    dma_flex.attend(q, k, v, delta=delta, plan=plan, scale=0.25)
    assert seen[0].shape[-1] == 200 and bool(seen[0].isfinite().all())


def test_only_live_keys_are_kept(inputs):
    """With iid delta and T >> w most keys are never attended: they are dropped, in steps of whole tiles."""
    T, w = 4096, 64
    plan = make_plan(torch.randn(1, 2, T, generator=torch.Generator().manual_seed(0)), w)
    order, birth, evict = dma_flex._keys(plan)
    live = int(plan.live_count_BG.max())
    assert live <= order.shape[-1] < live + flex.BLOCK
    assert live < T / 4
    for g in range(2):
        kept = order[0, g][evict[0, g] > birth[0, g]]
        assert torch.equal(kept.sort().values, plan.live_BGT[0, g].nonzero().flatten())
        assert torch.equal(evict[0, g][evict[0, g] > birth[0, g]], plan.evict_BGT[0, g, kept])


def test_a_plan_without_a_live_key_still_has_a_slot():
    plan = make_plan(torch.ones(1, 1, 300), 5, key_mask=torch.zeros(1, 300, dtype=torch.bool))
    order, birth, evict = dma_flex._keys(plan)
    assert order.shape[-1] >= 1 and bool((evict <= birth).all())


@pytest.fixture
def counted(monkeypatch) -> list[bool]:
    """Tile lists made from here on: whether each was for the backward too."""
    made: list[bool] = []

    def counting(tiles, query_blocks, by_tile):
        made.append(by_tile)
        return block_masks.tile_lists(tiles, query_blocks, by_tile)

    monkeypatch.setattr(dma_flex, "tile_lists", counting)
    return made


def test_lists_are_made_once_a_plan(eager_dma_flex, inputs, counted):
    q, k, v, delta = inputs(1, 4, 2, 200, 200, 16)
    plan = make_plan(delta, 30)
    for _ in range(3):
        eager_dma_flex(q, k, v, delta=delta, plan=plan, scale=0.25)
    assert counted == [False]
    for _ in range(2):  # the backward wants the lists by tile as well
        eager_dma_flex(q.requires_grad_(), k, v, delta=delta, plan=plan, scale=0.25)
    assert counted == [False, True]
    with torch.no_grad():
        eager_dma_flex(q, k, v, delta=delta, plan=plan, scale=0.25)
    assert counted == [False, True]


@pytest.mark.parametrize("backward", [False, True])
def test_prepare_leaves_nothing_for_the_call_to_make(eager_dma_flex, inputs, counted, backward):
    q, k, v, delta = inputs(1, 4, 2, 200, 200, 16, grad=backward)
    plan = make_plan(delta, 30)
    problem = Problem("cpu", torch.float32, 1, 4, 2, 200, 200, 16, 30, backward)
    dma_flex.prepare(plan=plan, delta=delta, problem=problem)
    assert counted == [backward]
    made = set(plan._derived)
    eager_dma_flex(q, k, v, delta=delta, plan=plan, scale=0.25)
    assert counted == [backward] and set(plan._derived) == made


@pytest.mark.parametrize("needs", range(4))
def test_lists_by_tile_are_there_whichever_input_needs_a_gradient(monkeypatch, inputs, needs):
    seen = []
    monkeypatch.setattr(flex, "attend", lambda *args: (seen.append(args[6]), (args[0], None))[1])
    tensors = inputs(1, 4, 2, 200, 200, 16)
    tensors[needs].requires_grad_()
    dma_flex.attend(*tensors[:3], delta=tensors[3], plan=make_plan(tensors[3], 30), scale=0.25)
    assert seen[0].q_count is not None and seen[0].full_q_index is not None


def test_executed_pairs_count_every_query_head(inputs):
    delta = inputs(2, 4, 2, 400, 400, 16)[3]
    plan = make_plan(delta, 30)
    problem = Problem("cpu", torch.float32, 2, 4, 2, 400, 400, 16, 30, False)
    executed = registry.get("dma/flex").executed_pairs(plan=plan, problem=problem)
    tiles = plan.tiles(128, 128)
    assert executed == 2 * 128 * 128 * int((tiles.last_BGN - tiles.first_BGN).sum())
    assert executed >= 2 * 4 * (400 * 30 - 30 * 29 // 2)


def test_no_compiler_no_flex(monkeypatch):
    monkeypatch.setattr(flex, "which", lambda name: None)
    assert "needs a C++ compiler: install g++" in (registry.get("dma/flex").unavailable("cpu") or "")
    assert registry.get("dma/flex").unavailable("cuda") is None
