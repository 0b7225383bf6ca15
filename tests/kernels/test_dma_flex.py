"""dma/flex: the compiled forward on a CPU, the backward evaluated eagerly, what it takes from the plan and when.

Each distinct shape compiles for seconds, so there are few. The backward on a GPU is in test_gpu.py.
"""

import inspect
from typing import Any

import pytest
import torch

from dmabench.kernels import Plan, Problem, block_masks, dma_flex, dynamic_mask_attention, flex, make_plan, registry


def test_odd_length_grouped_heads_and_padding(compiler, inputs, close):
    q, k, v, delta = inputs(2, 4, 2, 555, 555, 64)
    assert make_plan(delta, 50).gathers
    key_mask = torch.ones(2, 555, dtype=torch.bool)
    key_mask[0, 300:], key_mask[1, :40] = False, False
    delta[0, 1, 310] = torch.nan  # in the padding: multiplied by nothing, added to nothing
    out = dynamic_mask_attention(q, k, v, delta, 50, key_mask=key_mask, backend="flex")
    close(out, dynamic_mask_attention(q, k, v, delta, 50, key_mask=key_mask, backend="reference"))
    assert not out[1, :, :40].any()  # rows without a live key

    # The same shapes, so nothing compiles again: a NaN that no padding hides is never attended.
    delta[0, 1, 310], delta[0, 0, 100] = 1.0, torch.nan
    without = torch.arange(555) != 100
    out = dynamic_mask_attention(q, k, v, delta, 50, backend="flex")
    assert bool(out.isfinite().all())
    expected = dynamic_mask_attention(
        q, k, v, delta.nan_to_num(), 50, key_mask=without.expand(2, -1), backend="reference"
    )
    close(out[0, :2], expected[0, :2])


def test_fewer_queries_than_keys_and_a_padded_head_dim(compiler, inputs, close):
    q, k, v, delta = inputs(1, 2, 2, 150, 333, 48)
    assert not make_plan(delta, 70).gathers
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
    ("Tq", "T", "w", "padded"),
    [(300, 300, 40, False), (170, 300, 60, True), (300, 300, 1, False), (550, 550, 40, True), (200, 520, 100, False)],
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


@pytest.mark.parametrize("T", [200, 600])
def test_a_dead_keys_nan_poisons_neither_output_nor_gradient(eager_dma_flex, inputs, grads, close, T):
    leaves = inputs(1, 4, 2, T, T, 16, torch.float64, grad=True)
    with torch.no_grad():
        leaves[3][0, 1, 60] = torch.nan
    plan = make_plan(leaves[3], 30)
    assert plan.gathers == (T == 600)
    found = grads(eager_dma_flex(*leaves[:3], delta=leaves[3], plan=plan, scale=0.25), leaves)
    unflagged = Plan(30, T, plan.evict_BGT, torch.tensor(True))  # else the reference would refuse
    expected = dynamic_mask_attention(*leaves, 30, plan=unflagged, scale=0.25, backend="reference")
    for mine, right in zip(found, grads(expected, leaves), strict=True):
        assert bool(mine.isfinite().all())
        close(mine, right)
    assert not found[3][0, 1, 60].any()


@pytest.fixture
def handed(monkeypatch) -> dict[str, Any]:
    """What flex.attend is called with from here on, by the names of its arguments; it computes nothing."""
    signature, arguments = inspect.signature(flex.attend), {}

    def attend(*args: Any) -> tuple[torch.Tensor, None]:
        arguments.update(signature.bind(*args).arguments)
        return args[0], None

    monkeypatch.setattr(flex, "attend", attend)
    return arguments


@pytest.mark.parametrize(("T", "w"), [(200, 200), (600, 30)])
def test_no_nan_of_a_dead_key_is_handed_to_the_kernel(handed, inputs, T, w):
    """A kernel may add the bias before it masks, and a NaN times zero would stay."""
    q, k, v, delta = inputs(1, 2, 1, T, T, 16)
    delta[0, 0, 50], delta[0, 0, 60] = torch.nan, torch.inf
    plan = make_plan(delta, w, key_mask=torch.arange(T)[None] != 60)
    dma_flex.attend(q, k, v, delta=delta, plan=plan, scale=0.25)
    assert handed["bias"].shape[-1] == T and bool(handed["bias"].isfinite().all())


def test_keys_of_a_plan_that_gathers_are_in_the_order_of_its_tiles():
    plan = make_plan(torch.randn(2, 2, 1000, generator=torch.Generator().manual_seed(0)), 64, query_len=900)
    order, birth, evict = dma_flex._keys(plan)
    assert order.dtype == torch.int64 and torch.equal(order, plan.order_BGT.long())
    for name, mine in (("birth_BGT", birth), ("evict_BGT", evict)):
        assert mine.dtype == torch.int32 and torch.equal(mine, getattr(plan, name).gather(-1, order))


def test_keys_that_need_no_other_order_are_not_copied(handed, inputs):
    q, k, v, delta = inputs(1, 4, 2, 200, 200, 16)
    plan = make_plan(delta, 30)
    dma_flex.attend(q, k, v, delta=delta, plan=plan, scale=0.25)
    assert dma_flex._keys(plan)[0] is None
    assert handed["k"] is k and handed["v"] is v
    assert torch.equal(handed["birth"], plan.birth_BGT) and handed["evict"] is plan.evict_BGT


@pytest.mark.parametrize("T", [300, 600])
def test_no_list_holds_a_tile_of_dead_keys(T):
    plan = make_plan(torch.ones(1, 1, T), 5, key_mask=torch.zeros(1, T, dtype=torch.bool))
    lists = dma_flex._lists(plan, 1, backward=True)
    counts = (lists.kv_count, lists.full_kv_count, lists.q_count, lists.full_q_count)
    assert not any(count.any() for count in counts)


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
def test_lists_by_tile_are_there_whichever_input_needs_a_gradient(handed, inputs, needs):
    tensors = inputs(1, 4, 2, 200, 200, 16)
    tensors[needs].requires_grad_()
    dma_flex.attend(*tensors[:3], delta=tensors[3], plan=make_plan(tensors[3], 30), scale=0.25)
    assert handed["lists"].q_count is not None and handed["lists"].full_q_index is not None


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
