"""The plan: order, tiles against brute force, what is kept with it, what it refuses."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmabench.kernels import Plan, make_plan
from dmabench.kernels.lifetimes import eviction_times


def _plan(B: int, G: int, T: int, w: int, query_len: int, kind: str, seed: int = 0) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(B, G, T, generator=generator)
    key_mask = None
    if kind == "constant":
        delta = torch.ones(B, G, T)
    elif kind == "rising":
        delta = delta + torch.linspace(0, 5, T)
    elif kind == "padded":
        key_mask = torch.rand(B, T, generator=generator) < 0.7
    elif kind == "nothing":
        key_mask = torch.zeros(B, T, dtype=torch.bool)
    elif kind == "nan":
        delta[torch.rand(B, G, T, generator=generator) < 0.2] = torch.nan
    return make_plan(delta, w, key_mask=key_mask, query_len=query_len)


def _live(plan: Plan) -> Tensor:
    """bool [B, G, Tk, Tq], by key position, from the eviction times alone."""
    j = torch.arange(plan.key_len)[:, None]
    i = torch.arange(plan.key_len - plan.query_len, plan.key_len)
    return (j <= i) & (i < plan.evict_BGT[..., None])


PROBLEMS = {
    "B": st.integers(1, 2),
    "G": st.integers(1, 2),
    "T": st.one_of(st.integers(1, 150), st.integers(256, 700)),  # from 256 on a small window makes plans gather
    "w": st.integers(1, 160),
    "rows": st.floats(0, 1),
    "kind": st.sampled_from(("iid", "constant", "rising", "padded", "nothing", "nan")),
    "seed": st.integers(0, 10**6),
}


@given(**PROBLEMS)
@example(1, 2, 300, 1, 1.0, "iid", 0)
@example(2, 1, 700, 129, 0.4, "padded", 0)
@example(1, 1, 700, 20, 0.4, "nothing", 0)
@example(1, 1, 511, 20, 1.0, "iid", 0)
def test_order_is_a_permutation_with_the_live_keys_first_or_the_identity(B, G, T, w, rows, kind, seed):
    plan = _plan(B, G, T, w, max(1, round(rows * T)), kind, seed)
    assert plan.order_BGT.dtype == torch.int32 and plan.order_BGT.is_contiguous()
    assert torch.equal(plan.order_BGT.sort(-1).values, torch.arange(T, dtype=torch.int32).expand(B, G, T))
    attended = _live(plan).any(-1)
    assert torch.equal(plan.live_BGT, attended)
    assert torch.equal(plan.live_count_BG, attended.sum(-1))
    if plan.gathers:
        in_order = attended.gather(-1, plan.order_BGT.long())
        assert torch.equal(in_order, torch.arange(T) < plan.live_count_BG[..., None])
    else:
        assert torch.equal(plan.order_BGT, torch.arange(T, dtype=torch.int32).expand(B, G, T))
    assert plan.query_offset == T - plan.query_len and plan.key_len == T


@pytest.mark.parametrize(
    ("T", "w", "gathers"), [(255, 1, False), (256, 1, True), (511, 129, False), (512, 129, True), (512, 130, False)]
)
def test_keys_are_gathered_where_a_list_is_at_most_half_of_them(T, w, gathers):
    assert make_plan(torch.randn(1, 1, T), w).gathers == gathers


@given(**PROBLEMS)
def test_birth_is_the_first_query_that_may_attend(B, G, T, w, rows, kind, seed):
    plan = _plan(B, G, T, w, max(1, round(rows * T)), kind, seed)
    assert plan.birth_BGT.dtype == torch.int32 and plan.birth_BGT.shape == (B, G, T)
    i = torch.arange(plan.query_offset, T)
    by_lifetimes = (plan.birth_BGT[..., None] <= i) & (i < plan.evict_BGT[..., None])
    assert torch.equal(by_lifetimes, _live(plan))


@settings(max_examples=80)
@given(**PROBLEMS, block_q=st.sampled_from((1, 3, 16, 64)), block_k=st.sampled_from((1, 5, 16, 64)))
@example(1, 1, 1, 1, 1.0, "iid", 0, 64, 64)
@example(1, 1, 129, 8, 1.0, "constant", 0, 16, 16)
@example(2, 2, 131, 20, 0.3, "rising", 1, 16, 16)
@example(1, 2, 150, 160, 0.5, "padded", 2, 16, 5)
@example(1, 2, 600, 100, 1.0, "iid", 3, 64, 64)
@example(2, 1, 700, 40, 0.6, "padded", 4, 64, 16)
@example(1, 1, 300, 1, 1.0, "nan", 5, 16, 5)
def test_tiles_are_the_query_blocks_that_their_keys_touch(B, G, T, w, rows, kind, seed, block_q, block_k):
    plan = _plan(B, G, T, w, max(1, round(rows * T)), kind, seed)
    tiles = plan.tiles(block_q, block_k)
    order, live = plan.order_BGT.long(), _live(plan)
    tiles_of_keys, query_blocks = -(-T // block_k), -(-plan.query_len // block_q)
    for name in ("first_BGN", "last_BGN", "full_first_BGN", "full_last_BGN"):
        found = getattr(tiles, name)
        assert found.dtype == torch.int32 and found.shape == (B, G, tiles_of_keys), name
    overhang = (0, query_blocks * block_q - plan.query_len)
    executed = 0
    for b in range(B):
        for g in range(G):
            for n in range(tiles_of_keys):
                rows_of_keys = live[b, g, order[b, g, n * block_k : (n + 1) * block_k]]
                some = torch.nn.functional.pad(rows_of_keys.any(0), overhang).view(query_blocks, block_q)
                every = torch.nn.functional.pad(rows_of_keys.all(0), overhang, value=True).view(query_blocks, block_q)
                touched = some.any(-1).nonzero().flatten().tolist()
                whole = len(rows_of_keys) == block_k
                full = every.all(-1).nonzero().flatten().tolist() if whole else []
                first, last = int(tiles.first_BGN[b, g, n]), int(tiles.last_BGN[b, g, n])
                full_first, full_last = int(tiles.full_first_BGN[b, g, n]), int(tiles.full_last_BGN[b, g, n])
                hull = (touched[0], touched[-1] + 1) if touched else (0, 0)
                assert (first, last) == hull
                assert list(range(full_first, full_last)) == full
                assert first <= full_first <= full_last <= last  # what the partial lists are cut from
                executed += last - first
    assert int(tiles.executed_pairs()) == executed * block_q * block_k


def test_the_order_beats_that_of_positions():
    """What the reordering is for: at T = 4096, w = 128, iid, it must at least halve the executed pairs."""
    T, block = 4096, 128
    plan = make_plan(torch.randn(1, 1, T, generator=torch.Generator().manual_seed(0)), 128)
    evict, birth = plan.evict_BGT[0, 0].view(-1, block), torch.arange(T).view(-1, block)
    natural = int(((evict.amax(-1) + block - 1) // block - birth[:, 0] // block).sum()) * block * block
    executed = int(plan.tiles(block, block).executed_pairs())
    assert executed < natural / 2
    kept = T * 128 - 128 * 127 // 2
    assert kept <= executed < 4 * kept


@pytest.mark.parametrize("window", [9, 100])
def test_what_kernels_read_is_contiguous_whatever_the_strides_of_delta(window):
    delta = torch.randn(2, 60, 3).transpose(1, 2)
    plan, same = make_plan(delta, window), make_plan(delta.contiguous(), window)
    assert plan.evict_BGT.is_contiguous() and plan.order_BGT.is_contiguous()
    assert torch.equal(plan.evict_BGT, same.evict_BGT)


def test_eviction_times_and_flag_are_those_of_delta():
    delta, key_mask = torch.randn(2, 3, 50), torch.rand(2, 50) < 0.8
    plan = make_plan(delta, 9, key_mask=key_mask, query_len=20)
    assert torch.equal(plan.evict_BGT, eviction_times(delta, 9, key_mask))
    assert (plan.window, plan.query_len, plan.key_len, plan.query_offset) == (9, 20, 50, 30)
    assert plan.finite.dtype == torch.bool and plan.finite.shape == ()


def test_memory_grows_as_the_number_of_keys():
    """No tensor of the plan has more than a few entries a key, whatever T and w are."""
    B, G, T = 1, 2, 4096
    plan = make_plan(torch.randn(B, G, T), 512)
    tiles = plan.tiles(128, 128)
    made = [
        plan.evict_BGT,
        plan.finite,
        plan.finite_parts,
        plan.birth_BGT,
        plan.live_BGT,
        plan.live_count_BG,
        plan.order_BGT,
    ]
    made += [tiles.first_BGN, tiles.last_BGN, tiles.full_first_BGN, tiles.full_last_BGN]
    assert sum(x.untyped_storage().nbytes() for x in made) <= 24 * B * G * T
    known = {id(x) for x in (*made, tiles)}
    kept = [*vars(plan).values(), *plan._derived.values()]
    assert all(id(x) in known for x in kept if isinstance(x, Tensor)), "a tensor that this test does not count"


def test_what_is_derived_is_made_once():
    plan = make_plan(torch.randn(1, 1, 40), 5)
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return [len(made)]

    first = plan.derived("mine", make)
    assert plan.derived("mine", make) is first and made == [1]
    assert plan.derived(("mine", 2), make) == [2]
    assert plan.tiles(16, 8) is plan.tiles(16, 8)
    assert plan.tiles(8, 16) is not plan.tiles(16, 8)
    assert plan.order_BGT is plan.order_BGT
    assert make_plan(torch.randn(1, 1, 40), 5).derived("mine", make) == [3]  # plans share nothing


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_require_finite_names_delta_unless_padding_hides_it(value):
    delta = torch.randn(2, 2, 10)
    make_plan(delta, 3).require_finite()
    delta[1, 0, 4] = value
    with pytest.raises(ValueError, match=r"delta has NaN or infinite values.*'linear' does not"):
        make_plan(delta, 3).require_finite()
    key_mask = torch.ones(2, 10, dtype=torch.bool)
    key_mask[0, 4] = False  # the other row
    with pytest.raises(ValueError, match="delta has NaN"):
        make_plan(delta, 3, key_mask=key_mask).require_finite()
    key_mask[1, 4] = False
    make_plan(delta, 3, key_mask=key_mask).require_finite()


@pytest.mark.parametrize("window", [0, -1, True, False, 2.0, "3", None, torch.tensor(3)])
def test_refuses_a_window_that_is_no_count(window):
    with pytest.raises(ValueError, match=r"window must be an int of at least 1, got .*attends to itself or more"):
        make_plan(torch.zeros(1, 1, 4), window)


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (torch.zeros(1, 4), r"delta must be float32 \[B, G, T\] whatever the dtype of q, got torch.float32 \(1, 4\)"),
        (torch.zeros(1, 1, 1, 4), r"got torch.float32 \(1, 1, 1, 4\)"),
        (torch.zeros(1, 1, 4, dtype=torch.bfloat16), r"delta must be float32 .* got torch.bfloat16"),
        (torch.zeros(1, 1, 4, dtype=torch.float16), r"delta must be float32 .* got torch.float16"),
        (torch.zeros(1, 1, 4, dtype=torch.int32), r"delta must be float32 .* got torch.int32"),
    ],
)
def test_refuses_a_delta_of_another_shape_or_dtype(delta, message):
    with pytest.raises(ValueError, match=message):
        make_plan(delta, 2)


@pytest.mark.parametrize("query_len", [0, -1, 5])
def test_refuses_more_queries_than_keys_or_none(query_len):
    with pytest.raises(ValueError, match=rf"query_len must be in 1..4 \(the number of keys\), got {query_len}"):
        make_plan(torch.zeros(1, 1, 4), 2, query_len=query_len)


@pytest.mark.parametrize(
    "key_mask",
    [torch.ones(1, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4), torch.ones(2, 1, 4) > 0],
)
def test_refuses_a_key_mask_of_another_shape_or_dtype(key_mask):
    with pytest.raises(ValueError, match=r"key_mask must be bool \(2, 4\), True for real keys; got torch"):
        make_plan(torch.zeros(2, 1, 4), 2, key_mask=key_mask)
