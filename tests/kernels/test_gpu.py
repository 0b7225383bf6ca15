"""On a card: what only it can show. Forward and gradients of every backend there, offsets beyond 2^31, linear memory.

A budget is what the dtype itself must cost: the reference, rounding where a tensor core does, against float64.
"""

import gc
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dmabench.kernels import (
    Plan,
    Problem,
    Unsupported,
    dynamic_mask_attention,
    importance,
    make_plan,
    reference,
    registry,
)
from dmabench.kernels.lifetimes import eviction_times, eviction_times_by_heap

pytestmark = pytest.mark.gpu
CUDA = "cuda"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("dq", "dk", "dv", "ddelta")
FUSED = ("flex", "triton", "cuda")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _leave_no_memory():
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", ["iid", "ties", "rising", "nan"])
@pytest.mark.parametrize(("T", "w"), [(1, 1), (37, 5), (1000, 1), (4097, 100), (4097, 4097), (70001, 512)])
def test_eviction_times_are_those_of_the_cpu(kind, T, w):
    delta = torch.randn(2, 3, T, generator=torch.Generator().manual_seed(T))
    if kind == "ties":
        delta = (delta * 4).round() / 4 * torch.tensor([1.0, -1.0])[:, None, None]  # with zeros of both signs
    elif kind == "rising":
        delta += torch.linspace(0, 4, T)
    elif kind == "nan":
        delta[delta > 1] = torch.nan
    key_mask = torch.rand(2, T, generator=torch.Generator().manual_seed(1)) < 0.8
    for mask in (None, key_mask):
        found = eviction_times(delta.to(CUDA), w, None if mask is None else mask.to(CUDA))
        assert torch.equal(found.cpu(), eviction_times(delta, w, mask))
        assert torch.equal(found.cpu(), eviction_times_by_heap(delta, w, mask))


def test_importance_is_that_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(2, 4, 1000, 64, generator=generator).to(BF16)
    weight, gate = torch.randn(256, 4, generator=generator) / 16, torch.randn(4, generator=generator)
    for parametrisation in ("exp", "linear"):
        expected = importance(v.double(), weight.double(), gate.double(), parametrisation)
        found = importance(v.to(CUDA), weight.to(CUDA), gate.to(CUDA), parametrisation)
        assert found.dtype == FP32
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=1e-5)


def test_a_plan_is_made_without_waiting_for_the_device():
    """Planning must be able to run ahead of the device: only backends and checks read sizes and flags."""
    delta = torch.randn(2, 4, 5000, device=CUDA)
    key_mask = torch.ones(2, 5000, dtype=torch.bool, device=CUDA)
    make_plan(delta, 100, key_mask=key_mask).tiles(128, 128)  # whatever is set up once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan = make_plan(delta, 100, key_mask=key_mask, query_len=3000)
        plan.tiles(128, 64).executed_pairs()
        assert plan.live_count_BG.is_cuda and plan.finite.is_cuda
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _attend(backend: str, leaves, window: int, **options):
    """dynamic_mask_attention, or a skip with the reason why this backend does not take the problem."""
    try:
        return dynamic_mask_attention(*leaves, window, backend=backend, **options)
    except Unsupported as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("w", [100, 1000])  # with keys in another order, and without
def test_no_backend_waits_for_the_device(inputs, budget, backend, w):
    """Neither what it takes from the plan nor the forward and backward read anything back."""
    leaves = inputs(2, 4, 2, 700, 1000, 64, BF16, grad=True, device=CUDA)
    attention, delta, dout = registry.get(f"dma/{backend}"), leaves[3], budget.dout(leaves)
    problem = Problem(CUDA, BF16, 2, 4, 2, 700, 1000, 64, w, backward=True)
    if attention.refusal(problem):
        pytest.skip(attention.refusal(problem))

    def attend() -> None:
        plan = make_plan(delta, w, query_len=700)
        attention.prepare(plan=plan, delta=delta, problem=problem)
        out, _ = attention.attend(*leaves[:3], delta=delta, plan=plan, scale=0.125)
        torch.autograd.grad(out, leaves, dout)

    attend()  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(
    ("T", "w", "D", "H", "G", "B", "dtype"),
    [
        (1, 1, 64, 2, 2, 1, BF16),
        (37, 1, 64, 4, 2, 3, FP16),
        (37, 100, 96, 4, 1, 1, BF16),
        (300, 50, 16, 2, 1, 1, FP16),
        (300, 50, 17, 2, 2, 1, BF16),
        (300, 50, 256, 2, 1, 1, BF16),
        (300, 50, 256, 2, 1, 1, FP32),
        (1000, 1, 128, 2, 2, 1, BF16),
        (1000, 100, 64, 4, 2, 3, BF16),
        (1000, 1000, 128, 4, 4, 1, FP16),
        (1000, 100, 96, 4, 1, 1, FP32),
        (4097, 1, 64, 2, 2, 1, FP32),
        (4097, 100, 128, 4, 2, 1, BF16),
        (4097, 4097, 64, 2, 1, 1, BF16),
        (4097, 100, 96, 4, 1, 3, FP16),
        (4097, 100, 128, 4, 2, 1, FP32),
    ],
)
@pytest.mark.parametrize("backend", FUSED)
def test_forward_and_every_gradient(inputs, budget, backend, T, w, D, H, G, B, dtype):
    leaves = inputs(B, H, G, T, T, D, dtype, seed=T + w, grad=True, device=CUDA)
    plan = make_plan(leaves[3], w)
    out, lse = _attend(backend, leaves, w, plan=plan, return_lse=True)
    assert out.dtype == dtype
    checked = budget.check(leaves, budget.by_heap(leaves[3], w), D**-0.5, out)
    torch.testing.assert_close(lse.double(), checked.lse, rtol=1e-3, atol=1e-3)
    for name in ("dk", "dv", "ddelta"):
        assert not checked.found[name][~plan.live_BGT].any(), name  # exactly zero where nobody attends


def _padded(B: int, T: int) -> Tensor:
    """bool [B, T]: the first padded on the left, the second on the right, the last nothing but padding."""
    key_mask = torch.ones(B, T, dtype=torch.bool, device=CUDA)
    key_mask[0, : T // 4], key_mask[1, T - T // 3 :], key_mask[-1] = False, False, False
    return key_mask


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_padding_and_a_nan_in_it(inputs, budget, backend, dtype):
    T, w = 1000, 100
    leaves = inputs(3, 4, 2, T, T, 64, dtype, grad=True, device=CUDA)
    key_mask = _padded(3, T)
    with torch.no_grad():
        leaves[3][0, 0, 3], leaves[3][2, 1, 500] = torch.nan, torch.inf
    out, lse = _attend(backend, leaves, w, key_mask=key_mask, return_lse=True, check_finite=True)
    evict = budget.by_heap(leaves[3], w, key_mask)
    checked = budget.check(leaves, evict, 64**-0.5, out)
    position = torch.arange(T, device=CUDA)[:, None]
    rows = ((torch.arange(T, device=CUDA) <= position) & (position < evict[..., None, :])).any(-1)
    empty = ~rows.repeat_interleave(2, 1)
    assert int(empty.sum()) > T
    assert not out[empty].any() and not checked.found["dq"][empty].any()
    assert bool((lse[empty] == -torch.inf).all()) and bool(lse[~empty].isfinite().all())


@pytest.mark.parametrize(("Tq", "T", "w"), [(1, 1000, 100), (333, 1000, 100), (129, 300, 300)])
@pytest.mark.parametrize("backend", FUSED)
def test_fewer_queries_than_keys(inputs, budget, backend, Tq, T, w):
    leaves = inputs(2, 4, 2, Tq, T, 64, BF16, grad=True, device=CUDA)
    budget.check(leaves, budget.by_heap(leaves[3], w), 64**-0.5, _attend(backend, leaves, w))


@pytest.mark.parametrize("backend", FUSED)
def test_strided_inputs(inputs, budget, backend):
    leaves = inputs(2, 4, 2, 1000, 1000, 64, BF16, grad=True, device=CUDA)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in leaves]
    assert not any(x.is_contiguous() for x in strided)
    budget.check(strided, budget.by_heap(leaves[3], 100), 64**-0.5, _attend(backend, strided, 100))


def test_auto_is_fused_and_the_reference_runs_too(inputs, budget):
    leaves = inputs(1, 4, 2, 1000, 1000, 64, BF16, grad=True, device=CUDA)
    assert torch.equal(dynamic_mask_attention(*leaves, 100), dynamic_mask_attention(*leaves, 100, backend="triton"))
    with torch.no_grad():
        assert torch.equal(dynamic_mask_attention(*leaves, 100), dynamic_mask_attention(*leaves, 100, backend="cuda"))
    out = dynamic_mask_attention(*leaves, 100, backend="reference")
    budget.check(leaves, budget.by_heap(leaves[3], 100), 64**-0.5, out)


def test_a_changed_future_moves_no_earlier_output(inputs):
    """Not bit for bit here: a later key may change the order in which earlier ones are added up."""
    now = inputs(1, 4, 2, 1000, 1000, 64, BF16, device=CUDA)
    changed = [x.clone() for x in now]
    for x in changed:
        x[:, :, 700:] += 10.0
    before, after = (dynamic_mask_attention(*x, 100, backend="flex")[:, :, :700].double() for x in (now, changed))
    assert float((before - after).norm() / before.norm()) < torch.finfo(BF16).eps


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_sdpa_masked(inputs, budget, dtype):
    leaves = inputs(2, 4, 2, 1000, 1000, 64, dtype, grad=dtype == FP32, device=CUDA)
    out = dynamic_mask_attention(*leaves, 100, backend="sdpa-masked")
    evict = budget.by_heap(leaves[3], 100)
    if dtype == FP32:
        budget.check(leaves, evict, 64**-0.5, out)
    else:  # the mask is rounded to bf16 as well, delta and all, as in the published baseline
        exact, _ = budget.expect(leaves, evict, 64**-0.5, torch.float64, None)
        assert float((out.double() - exact[0]).norm() / exact[0].norm()) < 2e-2


def _run_plain(name: str, leaves, window: int | None) -> Tensor:
    """A dense or swa backend's output, or a skip with the reason why it is not here."""
    backend, (q, k, v) = registry.get(name), leaves[:3]
    (B, H, T, D), G = q.shape, k.shape[1]
    refusal = backend.refusal(Problem(CUDA, q.dtype, B, H, G, T, T, D, window, True))
    if refusal:
        pytest.skip(refusal)
    options = {} if window is None else {"window": window}
    return backend.attend(q, k, v, scale=D**-0.5, **options)


def _reach(leaves, window: int) -> Tensor:
    B, G, T, _ = leaves[1].shape
    return (torch.arange(T, device=CUDA) + window).clamp(max=T).expand(B, G, T)


PLAIN = [(2, 4, 2, 1000, 64, BF16), (1, 2, 2, 37, 128, FP16), (1, 4, 1, 2049, 128, BF16)]


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn", "sdpa-math", "flex", "fa3", "fa4"])
@pytest.mark.parametrize(("B", "H", "G", "T", "D", "dtype"), [*PLAIN, (1, 4, 2, 1000, 64, FP32)])
def test_dense(inputs, budget, name, B, H, G, T, D, dtype):
    q, k, v, delta = inputs(B, H, G, T, T, D, dtype, grad=True, device=CUDA)
    leaves = (q, k, v, torch.zeros_like(delta))
    budget.check(leaves, _reach(leaves, T), D**-0.5, _run_plain(f"dense/{name}", leaves, None))


@pytest.mark.parametrize("name", ["flex", "varlen-flash"])
@pytest.mark.parametrize("w", [1, 100, 5000])
@pytest.mark.parametrize(("B", "H", "G", "T", "D", "dtype"), PLAIN)
def test_sliding_window(inputs, budget, name, B, H, G, T, D, dtype, w):
    q, k, v, delta = inputs(B, H, G, T, T, D, dtype, grad=True, device=CUDA)
    leaves = (q, k, v, torch.zeros_like(delta))
    budget.check(leaves, _reach(leaves, min(w, T)), D**-0.5, _run_plain(f"swa/{name}", leaves, w))


def test_a_kernel_that_torch_lacks_is_unsupported(inputs):
    q, k, v, _ = inputs(1, 2, 2, 64, 64, 512, BF16, device=CUDA)  # FlashAttention ends at 256
    with pytest.raises(Unsupported, match=r"has no FLASH_ATTENTION kernel for torch.bfloat16, head dim 512, 2/2 heads"):
        registry.get("dense/sdpa-flash").attend(q, k, v, scale=0.04)


def _needs(gib: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free GPU memory, {free / GIB:.0f} are")


def _long(grad: bool) -> tuple[tuple[Tensor, ...], Plan, int]:
    """24 heads of 786432 x 128: 2.4e9 elements in each of q, k and v. Rising delta keeps every key alive."""
    shape, window = (1, 24, 786432, 128), 256
    generator = torch.Generator(CUDA).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator, device=CUDA, dtype=BF16) for _ in range(3))
    assert q.numel() > 2**31
    delta = torch.linspace(0, 4, shape[2], device=CUDA).expand(shape[:3])
    leaves = tuple(x.requires_grad_(grad) for x in (q, k, v, delta.contiguous()))
    return leaves, make_plan(delta, window), window


def _last_rows(leaves, window: int, rows: int, head: int):
    """float64 leaves, output and lse of one head's last rows, over the keys that those can attend to."""
    T = leaves[0].shape[2]
    keys = slice(T - rows - window, T)
    q = leaves[0].detach()[:, head : head + 1, T - rows :].double()
    k, v, delta = (x.detach()[:, head : head + 1, keys].double() for x in leaves[1:])
    small = [x.requires_grad_() for x in (q, k, v, delta)]
    birth = torch.arange(T - rows - window, T, device=CUDA).expand(1, 1, -1)
    positions = torch.arange(T - rows, T, device=CUDA)
    return small, reference.attend(*small, birth, birth + window, 128**-0.5, positions)


@pytest.mark.parametrize("head", [0, 23])
def test_flex_forward_beyond_int32(head):
    _needs(45)
    leaves, plan, window = _long(grad=False)
    out, lse = dynamic_mask_attention(*leaves, window, plan=plan, backend="flex", return_lse=True)
    _, (expected, expected_lse) = _last_rows(leaves, window, 64, head)
    found = out[:, head : head + 1, -64:].double()
    assert float((found - expected).norm() / expected.norm()) < 1e-2
    torch.testing.assert_close(lse[:, head : head + 1, -64:].double(), expected_lse, rtol=1e-3, atol=1e-3)


def test_flex_backward_beyond_int32():
    _needs(70)
    leaves, plan, window = _long(grad=True)
    out = dynamic_mask_attention(*leaves, window, plan=plan, backend="flex")
    rows, head = 64, 23
    part = torch.randn(1, 1, rows, 128, device=CUDA).to(BF16)
    dout = torch.zeros_like(out)
    dout[:, head : head + 1, -rows:] = part  # so that the last rows alone decide every gradient
    found = torch.autograd.grad(out, leaves, dout)
    del dout
    small, (expected, _) = _last_rows(leaves, window, rows, head)
    right = torch.autograd.grad(expected, small, part.double())
    for name, mine, theirs in zip(NAMES, found, right, strict=True):
        last = mine[:, head : head + 1, -theirs.shape[2] :].double()
        assert float((last - theirs).norm() / theirs.norm()) < 1e-2, name
        elsewhere = float(mine.norm(dtype=torch.float32)) ** 2 - float(last.norm()) ** 2
        assert elsewhere <= 1e-3 * float(last.norm()) ** 2, f"{name}: something was written where nothing belongs"


def test_flex_memory_is_linear(inputs):
    """Beside the inputs, plan included: a doubling of T costs at most 2.2 times as much, at a window of 2048."""
    _needs(20)
    peaks = []
    for T in (32768, 65536, 131072):
        generator = torch.Generator(CUDA).manual_seed(0)
        q = torch.randn(1, 16, T, 128, generator=generator, device=CUDA, dtype=BF16)
        k, v = (torch.randn(1, 8, T, 128, generator=generator, device=CUDA, dtype=BF16) for _ in range(2))
        delta = torch.randn(1, 8, T, generator=generator, device=CUDA)
        for _ in range(2):  # the first call compiles
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            inputs_only = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            dynamic_mask_attention(q, k, v, delta, 2048, backend="flex")
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        peaks.append((peak, peak - inputs_only))
    for shorter, longer in pairwise(peaks):
        assert longer[0] <= 2.2 * shorter[0] and longer[1] <= 2.2 * shorter[1], peaks


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("kind", ["iid", "rising"])
def test_memory_of_fused_backends_is_linear(backend, kind):
    """Forward and backward, plan included, beside the inputs: a doubling of T doubles it, whatever delta is."""
    _needs(8)
    peaks = []
    for T in (32768, 65536, 131072):
        q = torch.randn(1, 4, T, 128, device=CUDA, dtype=BF16, requires_grad=True)
        k, v = (torch.randn(1, 2, T, 128, device=CUDA, dtype=BF16, requires_grad=True) for _ in range(2))
        delta = torch.randn(1, 2, T, device=CUDA) + (torch.linspace(0, 8, T, device=CUDA) if kind == "rising" else 0)
        delta.requires_grad_()
        for _ in range(2):  # the first call compiles, and what a compiler leaves in cycles would count as held before
            gc.collect()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            out = dynamic_mask_attention(q, k, v, delta, 2048, backend=backend)
            grads = torch.autograd.grad(out, (q, k, v, delta), out)
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            del out, grads
        peaks.append(peak)
    assert all(1.5 < after / before < 2.1 for before, after in pairwise(peaks)), peaks


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_million_keys(backend):
    """Forward at T = 1,048,576, where a T x T mask would have 10^12 entries: last rows of one head against float64."""
    _needs(24)
    T, window, rows = 1 << 20, 2048, 64
    generator = torch.Generator(CUDA).manual_seed(0)
    q = torch.randn(1, 16, T, 128, generator=generator, device=CUDA, dtype=BF16)
    k, v = (torch.randn(1, 8, T, 128, generator=generator, device=CUDA, dtype=BF16) for _ in range(2))
    delta = torch.randn(1, 8, T, generator=generator, device=CUDA)
    with torch.no_grad():
        plan = make_plan(delta, window)
        out = dynamic_mask_attention(q, k, v, delta, window, plan=plan, backend=backend)
    evict = eviction_times_by_heap(delta[:, 7:].cpu(), window).to(CUDA)
    assert torch.equal(plan.evict_BGT[:, 7:], evict)
    positions, birth = torch.arange(T - rows, T, device=CUDA), torch.arange(T, device=CUDA).expand(1, 1, -1)
    tensors = (q[:, 14:, -rows:].double(), k[:, 7:].double(), v[:, 7:].double(), delta[:, 7:].double())
    expected, _ = reference.attend(*tensors, birth, evict, 128**-0.5, positions)
    found = out[:, 14:, -rows:].double()
    assert bool(out.isfinite().all())
    assert float((found - expected).norm() / expected.norm()) < 1e-2
