"""The fused plan against its definitions: its CUDA sources run on the CPU, and again on a card where there is one."""

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmabench.kernels import Plan, fused_plan, make_plan, nvrtc
from dmabench.kernels.fused_plan import launching
from dmabench.kernels.key_lists import key_lists
from dmabench.kernels.key_order import order_by_lifetime
from dmabench.kernels.lifetimes import eviction_times
from dmabench.kernels.plan import make_tiles

KINDS = ("iid", "constant", "rising", "falling", "ties", "nan", "left", "right", "sparse", "nothing")


def problem(kind: str, B: int, G: int, T: int, seed: int, device: str = "cpu"):
    """delta and key mask."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(B, G, T, generator=generator)
    key_mask = None
    if kind == "constant":
        delta = torch.ones(B, G, T)
    elif kind in ("rising", "falling"):
        delta = delta * 0.1 + torch.linspace(0, 8 if kind == "rising" else -8, T)
    elif kind == "ties":
        delta = (delta * 2).round() * torch.tensor([0.5, -0.5]).repeat(G)[:G, None]  # zeros of both signs among them
    elif kind == "nan":
        delta[delta > 1], delta[delta < -2] = torch.nan, -torch.inf
    elif kind in ("left", "right"):
        cut = torch.randint(0, T + 1, (B, 1), generator=generator)
        position = torch.arange(T)
        key_mask = position >= cut if kind == "left" else position < cut
    elif kind == "sparse":
        key_mask = torch.rand(B, T, generator=generator) < 0.3
    elif kind == "nothing":
        key_mask = torch.zeros(B, T, dtype=torch.bool)
    return delta.to(device), None if key_mask is None else key_mask.to(device)


def references_by_definition(delta, evict, query_len: int):
    """The largest delta among the keys that each query attends to; 0 where there is none."""
    T, position = delta.shape[-1], torch.arange(delta.shape[-1])
    found = []
    for row in range(T - query_len, T):
        attended = torch.where((position <= row) & (evict > row), delta, -torch.inf).amax(-1)
        found.append(torch.where(attended.isinf(), 0.0, attended))
    return torch.stack(found, -1)


def assert_as_defined(plan: Plan, delta, key_mask, window: int, query_len: int) -> None:
    """Every tensor of a fused plan equals its definition's, computed on the CPU."""
    T, on_device = delta.shape[-1], delta
    delta, key_mask = delta.cpu(), None if key_mask is None else key_mask.cpu()
    evict = eviction_times(delta, window, key_mask)
    assert torch.equal(plan.evict_BGT.cpu(), evict)
    usable = torch.ones_like(delta, dtype=torch.bool) if key_mask is None else key_mask[:, None].expand_as(delta)
    assert bool(plan.finite) == bool(delta[usable].isfinite().all())
    defined = Plan(window, query_len, evict, torch.tensor(True))
    assert plan.gathers == (plan.alive is not None)
    if T <= 5000:
        references = references_by_definition(delta, evict, query_len)
        assert torch.equal(plan.references(on_device).cpu(), references[..., ::128])
        assert torch.equal(plan.references(on_device, rows=True).cpu(), references)
    if plan.gathers:
        found, expected = plan.key_lists(), key_lists(defined)
        assert torch.equal(found.full_BGQ.cpu(), expected.full_BGQ)
        assert torch.equal(found.count_BGQ.cpu(), expected.count_BGQ)
        assert found.keys_BGQL.shape == expected.keys_BGQL.shape
        listed = torch.arange(found.keys_BGQL.shape[-1]) < expected.count_BGQ[..., None]
        assert torch.equal(found.keys_BGQL.cpu()[listed], expected.keys_BGQL[listed])
        assert torch.equal(plan.order_BGT.cpu(), order_by_lifetime(defined.birth_BGT, evict))
    for block_q, block_k in ((128, 64), (128, 128), (16, 40)):
        order = plan.order_BGT.cpu().long()
        birth, until = (x.gather(-1, order) for x in (defined.birth_BGT, evict))
        sizes = {"query_offset": T - query_len, "query_len": query_len, "block_q": block_q, "block_k": block_k}
        expected_tiles, found_tiles = make_tiles(birth, until, **sizes), plan.tiles(block_q, block_k)
        for name in ("first_BGN", "last_BGN", "full_first_BGN", "full_last_BGN"):
            assert torch.equal(getattr(found_tiles, name).cpu(), getattr(expected_tiles, name)), (name, block_k)


@pytest.fixture(scope="module")
def on_cpu(emulated):
    """The fused plan on CPU tensors: its kernels run by the emulator, its outputs poisoned before they are written."""
    sources = {}

    def launch(source, name, grid, block, *arguments, chunk=0):
        if (source, chunk) not in sources:
            sources[source, chunk] = emulated(launching.FOLDER / source, launching.defines(chunk))
        sized = [numpy.int32(x) if isinstance(x, int) else x for x in arguments]
        sources[source, chunk].launch(name, grid, block, 0, *sized)

    def poisoned(tensor, *size, dtype=None):
        found = torch.empty(*size, dtype=dtype or tensor.dtype)
        return found.fill_(False if dtype == torch.bool else 0x7F7F7F7F)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_plan, "usable", lambda x: True)
        patch.setattr(fused_plan, "launch", launch)
        patch.setattr(torch.Tensor, "new_empty", poisoned)
        yield


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    B=st.integers(1, 2),
    G=st.integers(1, 2),
    T=st.integers(1, 5000),
    w=st.one_of(st.integers(1, 300), st.integers(1, 5100)),
    rows=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    chunk=st.sampled_from(fused_plan._CHUNKS),
    long=st.booleans(),
)
@example("iid", 1, 1, 1, 1, 1.0, 0, 512, False)
@example("iid", 1, 2, 4096, 512, 1.0, 0, 512, True)  # chunks that end with the keys
@example("constant", 1, 1, 4097, 100, 1.0, 0, 1024, False)
@example("rising", 1, 1, 5000, 1, 0.5, 0, 2048, True)  # every key evicts another
@example("falling", 1, 1, 5000, 64, 0.7, 0, 512, True)  # nearly every key is dead on arrival
@example("ties", 2, 2, 4500, 2200, 1.0, 3, 2048, False)
@example("ties", 1, 2, 4999, 1500, 0.6, 4, 1024, True)
@example("nan", 1, 2, 3000, 700, 0.4, 1, 1024, False)
@example("left", 2, 1, 4100, 256, 0.9, 2, 512, False)
@example("sparse", 2, 1, 4999, 900, 1.0, 5, 2048, True)
@example("nothing", 1, 1, 2100, 64, 0.3, 0, 512, False)
def test_is_what_the_definitions_say(on_cpu, kind, B, G, T, w, rows, seed, chunk, long):
    query_len = max(1, round(rows * T))
    delta, key_mask = problem(kind, B, G, T, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_plan, "_chunk", lambda heads, key_len: chunk)
        patch.setattr(fused_plan, "_LONG", 0 if long else 1 << 30)
        plan = make_plan(delta, w, key_mask=key_mask, query_len=query_len)
        assert_as_defined(plan, delta, key_mask, w, query_len)


def test_keys_that_one_histogram_does_not_tell_apart(on_cpu):
    """Keys that share all but their last bits, and one far from them: the sample's bins tell them apart only later."""
    T, w = 5000, 700
    delta = 1 + torch.arange(T).roll(1234) * 2.0**-23
    delta[::7] = 1
    delta[17] = 1e30
    assert_as_defined(make_plan(delta[None, None], w), delta[None, None], None, w, T)


def test_an_address_that_vectors_cannot_be_loaded_from(on_cpu):
    delta = problem("iid", 1, 1, 3001, 0)[0][..., 1:]
    assert delta.data_ptr() % 16 and delta.is_contiguous()
    assert_as_defined(make_plan(delta, 100), delta, None, 100, 3000)


def test_chunks_fill_a_card_and_long_sequences_have_stretches():
    assert [fused_plan._chunk(8, T) for T in (1, 8192, 16384, 32768, 131072)] == [512, 512, 1024, 2048, 2048]
    assert [fused_plan._stretch(T, 2048, 2048) for T in (32768, 131072, 1 << 20)] == [0, 16384, 65536]
    assert fused_plan._stretch(131072, 16385, 2048) == 0  # more would be kept than passed over


def test_takes_any_strides(on_cpu):
    delta, _ = problem("iid", 2, 3, 2500, 0)
    key_mask = torch.rand(2500, 2, generator=torch.Generator().manual_seed(0)).T < 0.9
    strided = delta.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous() and not key_mask.is_contiguous()
    assert_as_defined(make_plan(strided, 50, key_mask=key_mask), delta, key_mask, 50, 2500)


SOURCES = [(source, 0) for source in ("survivors.cu", "key_order.cu", "references.cu")]
SOURCES += [(source, chunk) for source in ("evictions.cu", "key_lists.cu") for chunk in fused_plan._CHUNKS]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize(("source", "chunk"), SOURCES)
def test_compiles_without_spills_and_fits_two_blocks_a_multiprocessor(source, chunk, arch):
    kernels = nvrtc.resources(nvrtc.compile_source(launching.FOLDER / source, arch, launching.defines(chunk)).log)
    assert kernels
    for name, used in kernels.items():
        assert used.spill_stores == used.spill_loads == used.stack == 0, name
        assert used.registers <= 64, name  # 512 threads, twice, have 65536


@pytest.mark.parametrize("query_len", [700, 4000])
def test_operators_declare_the_shapes_that_they_return(on_cpu, query_len):
    delta, _ = problem("iid", 2, 2, 4000, 0)
    found = fused_plan.evictions(delta, 100, None, query_len, True)
    keys = fused_plan.key_lists(found[0], found[2], found[3], 100, query_len)
    order = fused_plan.order(found[0], query_len)
    ranges = fused_plan.tiles(order, found[0], query_len, 128, 64)
    operators_of = torch.ops.dmabench
    meta = [x.to("meta") for x in (delta, *found)]
    shapes = (
        (operators_of.plan_evictions(meta[0], 100, None, query_len, True), found),
        (operators_of.plan_key_lists(meta[1], meta[3], meta[4], 100, query_len), keys),
        ((operators_of.plan_order(meta[1], query_len),), (order,)),
        ((operators_of.plan_tiles(order.to("meta"), meta[1], query_len, 128, 64),), (ranges,)),
    )
    for declared, returned in shapes:
        assert [(x.shape, x.dtype) for x in declared] == [(x.shape, x.dtype) for x in returned]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("T", "w", "rows"),
    [
        (1, 1, 1),
        (37, 5, 37),
        (1000, 1, 600),
        (4097, 100, 4097),
        (4097, 4097, 50),
        (20001, 512, 15000),
        (70001, 512, 70001),
    ],
)
def test_on_a_card(kind, T, w, rows):
    delta, key_mask = problem(kind, 2, 3, T, T, "cuda")
    first = make_plan(delta, w, key_mask=key_mask, query_len=rows)
    assert_as_defined(first, delta, key_mask, w, rows)
    again = make_plan(delta, w, key_mask=key_mask, query_len=rows)
    assert torch.equal(first.evict_BGT, again.evict_BGT) and torch.equal(first.order_BGT, again.order_BGT)


@pytest.mark.gpu
def test_is_captured_in_a_graph_and_follows_new_values():
    delta, _ = problem("iid", 1, 4, 9000, 0, "cuda")

    def make():
        plan = make_plan(delta, 300)
        plan.key_lists(), plan.tiles(128, 64)
        return plan

    make()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = make()
    delta.copy_(problem("rising", 1, 4, 9000, 1)[0])
    graph.replay()
    assert_as_defined(plan, delta, None, 300, 9000)


@pytest.mark.gpu
def test_waits_for_nothing():
    delta, _ = problem("iid", 2, 4, 5000, 0, "cuda")
    key_mask = torch.ones(2, 5000, dtype=torch.bool, device="cuda")

    def make():
        plan = make_plan(delta, 100, key_mask=key_mask, query_len=3000)
        plan.key_lists(), plan.tiles(128, 64)

    make()  # compiles and loads
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_device_that_is_not_the_current_one():
    delta, _ = problem("iid", 1, 2, 5000, 0, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert_as_defined(make_plan(delta, 100), delta, None, 100, 5000)
