"""The CUDA kernels of dma/cuda, run on the CPU by the emulator and, where there is one, on a GPU."""

import pytest
import torch

from dmabench.kernels import Problem, dma_cuda, dynamic_mask_attention, make_plan, nvrtc, reference
from dmabench.kernels.dma_cuda import launch, ops

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def on_cpu(kernels_on_cpu, monkeypatch):
    """Lets the package run on CPU tensors: its kernels are emulated, and blocks of dk and dv share tiles."""
    monkeypatch.setattr(launch, "_blocks_at_once", lambda _: 3)


def padded(B, T):
    """bool [B, T]: padding at the front of the first sequence and at the end of the last."""
    key_mask = torch.ones(B, T, dtype=torch.bool)
    key_mask[0, : T // 3] = False
    key_mask[-1, T // 2 :] = False
    return key_mask


# One dtype a head dimension: the two differ in a handful of functions, and every variant takes seconds to compile.
CASES = {
    "one key": dict(T=1, window=1, D=64, dtype=FP16),
    "window 1": dict(T=37, window=1, D=64, dtype=FP16),
    "window 7": dict(T=200, window=7, H=2, D=64, dtype=FP16, gathers=True),
    "groups": dict(T=300, window=64, H=4, G=2, D=64, dtype=FP16, gathers=True),
    "gathered": dict(T=300, window=64, H=2, D=128, dtype=BF16, gathers=True),
    "in order": dict(T=300, window=64, H=2, D=64, dtype=FP16),
    "causal": dict(T=200, window=200, D=128, dtype=BF16),
    "few queries": dict(T=300, Tq=150, window=40, H=2, G=2, D=64, dtype=FP16, gathers=True),
    "few queries in order": dict(T=300, Tq=150, window=100, D=128, dtype=BF16),
    "padding": dict(T=200, window=30, B=2, D=64, dtype=FP16, padding=True, gathers=True),
    "padding in order": dict(T=200, window=30, B=2, D=64, dtype=FP16, padding=True),
}


@pytest.mark.parametrize("case", CASES)
def test_against_the_definition(case, on_cpu, poisoned, inputs, definition, grads, close, monkeypatch):
    options = dict(H=1, G=1, gathers=False, padding=False) | CASES[case]
    window, gathers, padding = (options.pop(name) for name in ("window", "gathers", "padding"))
    q, k, v, delta = leaves = inputs(**options, grad=True)
    key_mask = padded(q.shape[0], k.shape[2]) if padding else None
    plan = make_plan(delta.detach(), window, key_mask=key_mask, query_len=q.shape[2])
    monkeypatch.setattr(type(plan), "gathers", gathers)
    live = definition.live_keys(delta.detach(), window, key_mask, q.shape[2])
    expected, expected_lse = definition.attention(*leaves, live)
    out, lse = dma_cuda.attend(q, k, v, delta=delta, plan=plan, scale=q.shape[-1] ** -0.5)
    close(out, expected, q.dtype, "out")
    close(lse, expected_lse.float(), torch.float32, "lse")
    dead = ~live.any(-2)
    for name, found, wanted in zip(
        ("dq", "dk", "dv", "ddelta"), grads(out, leaves), grads(expected, leaves), strict=True
    ):
        close(found, wanted, q.dtype, name)
        assert name == "dq" or not found[dead].any(), f"{name} of keys that nobody attends to"


def call(leaves, window):
    """out, lse and all gradients of a fixed projection of out."""
    q, k, v, delta = leaves
    plan = make_plan(delta.detach(), window, query_len=q.shape[2])
    out, lse = dma_cuda.attend(q, k, v, delta=delta, plan=plan, scale=0.3)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return out, lse, *torch.autograd.grad(out, leaves, dout)


@pytest.mark.parametrize("blocks", [1, 2, 8, 100])
def test_dk_and_dv_do_not_depend_on_how_blocks_share_tiles(blocks, on_cpu, inputs, close, monkeypatch):
    """100: more blocks than there are steps, so that some have none."""
    leaves = inputs(T=300, H=2, D=64, dtype=FP16, grad=True)
    one = call(leaves, 20)
    joined = []
    launch_it = launch._launch
    monkeypatch.setattr(launch, "_blocks_at_once", lambda _: blocks)
    monkeypatch.setattr(launch, "_launch", lambda name, *a: joined.append(a[2]) or launch_it(name, *a))
    other = call(leaves, 20)
    assert joined[-1] == min(blocks, 5)
    for found, expected in zip(other, one, strict=True):
        close(found, expected)


def test_reads_any_strides(on_cpu, inputs, close):
    """Heads beside one another, as a projection gives them, are read in place; what cannot be is copied."""
    leaves = inputs(T=200, H=2, D=64, dtype=FP16, grad=True)
    expected = call(leaves, 20)

    def beside(x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def off_by_one(x):
        return torch.cat([x[..., :1], x], -1)[..., 1:]

    def strided(x):
        return x.repeat_interleave(2, -1)[..., ::2]

    q = beside(leaves[0].detach())
    assert launch.addressable(q) is q and not q.is_contiguous()
    for view in (beside, off_by_one, strided):
        found = call([view(x.detach()).requires_grad_() for x in leaves[:3]] + [leaves[3]], 20)
        assert all(x.is_contiguous() for x in found)
        for mine, wanted in zip(found, expected, strict=True):
            assert torch.equal(mine, wanted)


@pytest.mark.parametrize("gathers", [True, False])
def test_operators_are_sound(gathers, on_cpu, inputs, monkeypatch):
    q, k, v, delta = leaves = inputs(T=130, H=2, D=64, dtype=FP16, grad=True)
    plan = make_plan(delta.detach(), 20)
    monkeypatch.setattr(type(plan), "gathers", gathers)
    visits, tiles, origins = dma_cuda._visits(plan), dma_cuda._tiles(plan, 2), plan.references(delta)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(
        torch.ops.dmabench.dma_cuda_forward, (*leaves, plan.evict_BGT, origins, visits, tiles, 0.1), test_utils=checks
    )
    out, _, lse = ops.forward(q, k, v, delta, plan.evict_BGT, origins, visits, tiles, 0.1)
    saved = [x.detach() for x in (*leaves, plan.evict_BGT, origins, out, lse)]
    torch.library.opcheck(
        torch.ops.dmabench.dma_cuda_backward,
        (*saved[:6], visits, tiles, *saved[6:], saved[6], 0.1),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_whole(on_cpu, inputs, grads):
    """torch.compile sees operators, forward and backward, and no break between them."""
    leaves = inputs(T=130, H=2, D=64, dtype=FP16, grad=True)
    plan = make_plan(leaves[3].detach(), 20)
    dma_cuda.prepare(plan=plan, delta=leaves[3], problem=problem())

    def function(q, k, v, delta):
        return dma_cuda.attend(q, k, v, delta=delta, plan=plan, scale=0.1)[0].sin()

    out, compiled = function(*leaves), torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)
    assert torch.equal(out, compiled)
    assert all(map(torch.equal, grads(out, leaves), grads(compiled, leaves)))


def test_shapes_without_a_device(inputs):
    """What torch.compile asks: shapes, types and strides, from no data."""
    q, k, v, delta = (x.to("meta") for x in inputs(B=2, H=4, G=2, T=300, D=64, dtype=BF16))
    origins = delta[..., :3]
    out, lse, _ = torch.ops.dmabench.dma_cuda_forward(q, k, v, delta, delta.int(), origins, [delta.int()] * 3, [], 0.1)
    assert out.shape == q.shape and out.dtype == BF16 and out.is_contiguous()
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32


def problem(**options):
    given = dict(device="cuda", dtype=BF16, batch=1, heads=2, kv_heads=1, query_len=512, key_len=512, head_dim=64)
    return Problem(**(given | dict(window=64, backward=True) | options))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(head_dim=96), "the CUDA kernels exist for head dimensions 64 and 128, not 96"),
        (dict(head_dim=256), "the CUDA kernels exist for head dimensions 64 and 128, not 256"),
        (dict(dtype=torch.float32), "the CUDA kernels takes fp16 and bf16, not float32"),
        (dict(dtype=torch.float64), "the CUDA kernels takes fp16 and bf16, not float64"),
        (dict(), None),
        (dict(head_dim=128, dtype=FP16), None),
    ],
)
def test_refuses_with_a_reason(options, why):
    assert dma_cuda.refuses(problem(**options)) == why


def test_needs_a_device(monkeypatch):
    assert dma_cuda.missing("cpu") == "CUDA C++ kernels need a CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old Card")
    monkeypatch.setattr(nvrtc, "missing", lambda _: None)
    assert dma_cuda.missing("cuda") == "the CUDA kernels need sm_80 or later, and Old Card is older"


def test_counts_the_pairs_it_executes(inputs):
    """A block of 128 queries of one head meets whole steps of 64 keys."""
    delta = inputs(T=512, H=2)[3]
    plan = make_plan(delta, 20)
    dma_cuda.prepare(plan=plan, delta=delta, problem=problem())
    position = torch.arange(512)
    steps = 0
    for first in range(0, 512, 128):
        live = (plan.evict_BGT[0, 0] > first) & (plan.evict_BGT[0, 0] > position) & (position < first + 128)
        steps += -(-int(live.sum()) // 64)
    assert plan.gathers and dma_cuda.executed_pairs(plan=plan, problem=problem()) == steps * 64 * 128 * 2
    dense = make_plan(delta, 512)
    assert dma_cuda.executed_pairs(plan=dense, problem=problem()) == sum(range(1, 5)) * 2 * 64 * 128 * 2


GPU_CASES = {
    "gathered": dict(T=4096, window=256, H=4, G=2, D=128, dtype=BF16),
    "gathered, 64": dict(T=2500, window=300, H=4, G=1, D=64, dtype=FP16),
    "in order": dict(T=2000, window=1500, H=2, G=2, D=128, dtype=FP16),
    "few queries": dict(T=3000, Tq=700, window=200, B=2, H=4, G=2, D=64, dtype=BF16),
    "short": dict(T=77, window=20, H=2, G=1, D=128, dtype=BF16),
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES)
def test_against_the_reference_on_a_gpu(case, inputs, grads, close):
    options = dict(GPU_CASES[case])
    window = options.pop("window")
    leaves = inputs(**options, device="cuda", grad=True)
    q, delta = leaves[0], leaves[3]
    plan = make_plan(delta.detach(), window, query_len=q.shape[2])
    positions = torch.arange(plan.query_offset, plan.key_len, device="cuda")
    exact = [x.detach().double().requires_grad_() for x in leaves]
    birth = torch.arange(plan.key_len, device="cuda").expand_as(plan.evict_BGT)
    expected, expected_lse = reference.attend(*exact, birth, plan.evict_BGT, q.shape[-1] ** -0.5, positions)
    out, lse = dynamic_mask_attention(*leaves, window, plan=plan, backend="cuda", return_lse=True)
    close(out, expected, q.dtype, "out")
    close(lse, expected_lse.float(), torch.float32, "lse")
    found, wanted = grads(out, leaves), grads(expected, exact)
    for name, mine, right in zip(("dq", "dk", "dv", "ddelta"), found, wanted, strict=True):
        close(mine, right, q.dtype, name)
    again = grads(dynamic_mask_attention(*leaves, window, plan=plan, backend="cuda"), leaves)
    assert all(map(torch.equal, found, again)), "not deterministic"


@pytest.mark.gpu
def test_forward_and_backward_in_a_graph(inputs):
    leaves = inputs(T=2048, H=4, G=2, D=128, dtype=BF16, device="cuda", grad=True)
    plan = make_plan(leaves[3].detach(), 200)

    def step():
        out = dynamic_mask_attention(*leaves, 200, plan=plan, backend="cuda")
        return out, *torch.autograd.grad(out, leaves, torch.ones_like(out))

    # Detached: a graph of autograd that is kept remembers this stream, and a capture must not touch it.
    expected = [x.detach().clone() for x in step()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in captured:
        x.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, expected))
