"""dma/triton against the definition: on a CPU through Triton's interpreter, on a card compiled.

Every tensor that the kernels are to fill starts as NaN (dma_triton_calls.py).
"""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmabench.kernels import make_plan, registry

CALLS = Path(__file__).with_name("dma_triton_calls.py")
NAMES = ("out", "lse", "dq", "dk", "dv", "ddelta")
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16

BOTH_WAYS = pytest.mark.parametrize("gathers", [True, False], ids=["gathers", "in order"])


class _Child:
    """Calls the functions of dma_triton_calls.py in a process where kernels are interpreted."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(CALLS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            cwd=CALLS.parent,
        )

    def __call__(self, name, *args, **kwargs):
        pickle.dump((name, args, kwargs), self.process.stdin)
        self.process.stdin.flush()
        answer, error = pickle.load(self.process.stdout)
        assert error is None, error
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=200)


CARD = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module", params=["interpreter", CARD])
def call(request):
    """call(name, ...): what that function of dma_triton_calls.py returns."""
    if request.param == "interpreter":
        child = _Child()
        yield child
        child.close()
    else:
        spec = importlib.util.spec_from_file_location("dma_triton_calls", CALLS)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield lambda name, *args, **kwargs: getattr(module, name)(*args, **kwargs, device="cuda")


@pytest.fixture(scope="module")
def check(call, definition, close):
    """check(tensors, window, ...): outputs and gradients are those of the definition; returns them."""

    def run(tensors, window, *, key_mask=None, dout=None, usable=None, **options):
        q, k, v, delta = tensors
        if dout is None:
            dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q.dtype)
        found, _ = call("attend", tensors, window, key_mask=key_mask, dout=dout, **options)
        leaves = [x.detach().double().requires_grad_() for x in (q, *(usable or (k, v)), delta)]
        live = definition.live_keys(delta, window, key_mask, q.shape[2])
        out, lse = definition.attention(*leaves, live, options.get("scale"))
        expected = (out, lse, *torch.autograd.grad(out, leaves, dout.double()))
        for name, mine, right in zip(NAMES, found, expected, strict=True):
            assert mine.dtype == (FP32 if name in ("lse", "ddelta") else q.dtype)
            close(mine, right, q.dtype, name)
        dead = ~live.any(-2)
        for mine in found[3:]:
            assert not mine[dead].any(), "a key that nobody attends to has a gradient"
        return dict(zip(NAMES, found, strict=True))

    return run


# B, H, G, Tq, T, D, window
CASES = [
    (1, 1, 1, 1, 1, 16, 1),
    (1, 2, 1, 37, 37, 17, 7),
    (3, 2, 2, 37, 130, 16, 64),
    (1, 4, 1, 130, 130, 64, 1),
    (1, 4, 2, 130, 300, 16, 64),
    (1, 2, 1, 300, 300, 96, 7),
    (1, 1, 1, 300, 300, 32, 300),
    (1, 2, 2, 130, 130, 128, 64),
    (1, 2, 1, 37, 70, 256, 20),
    (2, 4, 1, 1, 300, 64, 64),
]


@BOTH_WAYS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients(call, check, inputs, case, gathers):
    *shape, window = case
    # The interpreter computes bfloat16 wrongly; a card would take minutes to compile so many shapes for fp32.
    tensors = inputs(*shape, FP32 if isinstance(call, _Child) else BF16)
    both = check(tensors, window, gathers=gathers)
    out, lse = call("attend", tensors, window, gathers=gathers)[0]  # needs less of the plan
    assert torch.equal(out, both["out"]) and torch.equal(lse, both["lse"])


# Candidates of `dmabench tune` that the table has none of: several heads a program, positions of keys read ahead, two
# tiles of keys a program.
BLOCKS = [
    ((128, 32, 4, 3, 2, True), (64, 32, 4, 3, 2, True), (64, 32, 4, 2)),
    ((64, 64, 4, 2, 4, False), (32, 64, 4, 3, 1, True), (64, 128, 8, 2, 1, False, True)),
]


@BOTH_WAYS
@pytest.mark.parametrize("blocks", BLOCKS, ids=["2 heads", "4 heads"])
def test_every_kind_of_configuration(call, check, inputs, blocks, gathers):
    dtype = FP32 if isinstance(call, _Child) else BF16
    check(inputs(1, 8, 2, 37, 130, 16, dtype), 40, gathers=gathers, blocks=blocks)


@BOTH_WAYS
def test_two_tiles_of_keys_a_program(call, check, inputs, gathers):
    """Five tiles, of which some are live throughout a block of queries, and some beside tiles that are not."""
    blocks = ((128, 64, 4, 2), (128, 64, 4, 2), (128, 128, 8, 2))
    check(
        inputs(1, 1, 1, 300, 300, 16, FP32 if isinstance(call, _Child) else BF16), 150, gathers=gathers, blocks=blocks
    )


# The programs of the gradients of keys share tiles: five of them where they are interpreted.
EVEN = ((128, 64, 8, 2), (128, 64, 8, 2), (32, 64, 4, 2, 1, False, True))


@pytest.mark.parametrize("T, window, H, G", [(300, 40, 4, 1), (300, 300, 4, 2), (64, 5, 1, 1), (700, 1, 1, 1)])
def test_tiles_shared_evenly(call, check, inputs, T, window, H, G):
    """A tile that all programs share, two in one program, one that is dead, fewer tiles than programs."""
    key_mask = torch.ones(2, T, dtype=torch.bool)
    key_mask[1, : T // 2] = False
    dtype = FP32 if isinstance(call, _Child) else BF16
    check(inputs(2, H, G, T, T, 16, dtype), window, key_mask=key_mask, blocks=EVEN)


@BOTH_WAYS
@pytest.mark.parametrize("case", CASES[1::3], ids=str)
def test_float16(check, inputs, case, gathers):
    *shape, window = case
    check(inputs(*shape, FP16), window, gathers=gathers)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("call", "D"),
    [("interpreter", 64), ("interpreter", 256), pytest.param("cuda", 64, marks=pytest.mark.gpu)],
    indirect=["call"],
)
def test_the_small_blocks_of_float32(check, inputs, D, gathers):
    """Several to a list or a tile."""
    check(inputs(1, 1, 1, 40, 100, D), 20, gathers=gathers, shipped=True)


@BOTH_WAYS
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("call", [CARD], indirect=True)
def test_many_blocks(check, inputs, D, gathers):
    check(inputs(2, 4, 2, 1500, 2000, D, BF16), 300, gathers=gathers)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    B=st.integers(1, 2),
    G=st.integers(1, 2),
    groups=st.integers(1, 2),
    T=st.integers(1, 150),
    rows=st.floats(0, 1),
    D=st.sampled_from((1, 8, 16, 24)),
    w=st.integers(1, 160),
    dtype=st.sampled_from((FP32, FP16)),
    gathers=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 10**6),
    blocks=st.sampled_from((None, EVEN)),
)
@pytest.mark.parametrize("call", ["interpreter"], indirect=True)
def test_small_shapes(check, inputs, B, G, groups, T, rows, D, w, dtype, gathers, padded, seed, blocks):
    tensors = inputs(B, G * groups, G, max(1, round(rows * T)), T, D, dtype, seed)
    key_mask = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.6 if padded else None
    check(tensors, w, key_mask=key_mask, gathers=gathers, blocks=blocks)


@BOTH_WAYS
def test_padding(check, inputs, gathers):
    key_mask = torch.ones(3, 140, dtype=torch.bool)
    key_mask[0, :135], key_mask[1, 9:], key_mask[2] = False, False, False
    found = check(inputs(3, 2, 1, 140, 140, 16), 20, key_mask=key_mask, gathers=gathers)
    empty = torch.ones(3, 140, dtype=torch.bool)  # rows 9 and on of the second attend to the keys before
    empty[0, 135:], empty[1] = False, False
    for name in ("out", "dq"):
        assert not found[name].transpose(1, 2)[empty].any()
    assert (found["lse"].transpose(1, 2)[empty] == -torch.inf).all()


@BOTH_WAYS
def test_rows_that_nobody_attends_to_may_hold_anything(check, inputs, gathers):
    q, k, v, delta = inputs(1, 2, 1, 150, 150, 16)
    delta[..., [0, 3, 140, 149]] = torch.nan
    delta[..., 60] = torch.inf
    key_mask = torch.arange(150)[None] != 60
    bad = [0, 3, 60, 140, 149]
    usable = [x.index_fill(2, torch.tensor(bad), 0.0) for x in (k, v)]
    k[:, :, bad], v[:, :, bad] = torch.nan, torch.inf
    check((q, k, v, delta), 40, key_mask=key_mask, usable=usable, gathers=gathers)


@BOTH_WAYS
@pytest.mark.parametrize("value", [0.0, 3e6, -3e6])
def test_constant_delta(check, inputs, value, gathers):
    """A sliding window, however large delta is."""
    q, k, v, _ = inputs(1, 2, 1, 150, 150, 16)
    check((q, k, v, torch.full((1, 1, 150), value)), 30, gathers=gathers)


@BOTH_WAYS
def test_deltas_in_the_millions(check, inputs, gathers):
    """Float32 numbers of that size are 0.25 apart, which must not be what their differences are rounded to."""
    *qkv, delta = inputs(1, 2, 1, 150, 150, 16)
    check((*qkv, 3e6 + delta.mul(8).round()), 30, gathers=gathers)


@BOTH_WAYS
@pytest.mark.parametrize("trend", [1, -1], ids=["rising", "falling"])
def test_trends(check, inputs, trend, gathers):
    """Rising is a sliding window; falling keeps the first keys for good, and whole tiles of others are dead."""
    q, k, v, _ = inputs(1, 2, 1, 400, 400, 16)
    check((q, k, v, trend * torch.linspace(0, 3, 400).view(1, 1, 400)), 140, gathers=gathers)


@BOTH_WAYS
def test_any_strides(call, check, inputs, gathers):
    q, k, v, delta = inputs(1, 4, 2, 40, 40, 24)
    heads_inside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    joined = torch.cat([x.transpose(1, 2) for x in (q, k, v)], 2)
    of_joined = [x.transpose(1, 2) for x in joined.split([4, 2, 2], 2)]
    columns = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    every_other = torch.stack([delta, torch.full_like(delta, torch.nan)], -1)[..., 0]
    for layout in (heads_inside, of_joined, columns, (q, heads_inside[1], columns[2])):
        check((*layout, every_other), 20, gathers=gathers)
    dout = torch.ones_like(q)
    _, (out, lse, dq, dk, dv, ddelta) = call("attend", (*of_joined, delta), 20, dout=dout, gathers=gathers)
    assert out == dq == heads_inside[0].stride() and dk == dv == heads_inside[1].stride()
    assert lse == (4 * 40, 40, 1) and ddelta == (2 * 40, 40, 1)


@BOTH_WAYS
def test_any_gradient_strides(check, inputs, gathers):
    tensors = inputs(2, 2, 1, 40, 40, 24)
    number = torch.randn(1, 1, 1, 1)
    by_row = torch.randn(2, 2, 40, 1)
    for dout in (number.expand(2, 2, 40, 24), by_row.expand(2, 2, 40, 24), torch.randn(2, 40, 2, 24).transpose(1, 2)):
        check(tensors, 20, dout=dout, gathers=gathers)


def test_scale(check, inputs):
    check(inputs(1, 2, 1, 70, 70, 16), 20, scale=0.7)


@BOTH_WAYS
def test_opcheck(call, gathers):
    call("opcheck", gathers)


@BOTH_WAYS
@pytest.mark.parametrize("blocks", [BLOCKS[0], EVEN], ids=["whole tiles", "even"])
def test_compiled(call, gathers, blocks):
    assert call("compiled", gathers, blocks) == 0.0


def test_executed_pairs(call, inputs, definition):
    """Counted from the mask: tiles of 64 in order, or lists rounded up to a whole number of blocks."""
    delta = inputs(1, 1, 1, 300, 400, 16)[3]
    live = torch.nn.functional.pad(definition.live_keys(delta, 60, None, 300), (0, 48, 0, 84)).unflatten(-2, (3, 128))
    seen = live.any(-2)[0, 0]
    by_list = sum(-(-int(keys.sum()) // 64) * 64 * 128 for keys in seen)
    assert call("executed_pairs", delta, 60, 2, True, 64, 300, FP16) == 2 * by_list
    tiles = seen.unflatten(-1, (-1, 64)).any(-1)
    hull = sum(int(x.nonzero().max() - x.nonzero().min() + 1) for x in tiles.T if x.any()) * 64 * 128
    assert call("executed_pairs", delta, 60, 2, False, 64, 300, FP16) == 2 * hull


def test_what_it_refuses(call):
    fp32, fp16, bf16, fp64, large = call("refusals")
    assert fp32 is None and fp16 is None
    assert (bf16 is not None and "interpreter computes bfloat16 wrongly" in bf16) == isinstance(call, _Child)
    assert fp64 == "the Triton kernels have no float64; dma/reference has it"
    assert large == "the Triton kernels take head dimensions up to 256, not 257"


def test_needs_a_card_or_the_interpreter(inputs):
    """In this process, where nothing is interpreted."""
    backend = registry.get("dma/triton")
    assert "need a CUDA device (with TRITON_INTERPRET=1" in backend.unavailable("cpu")
    q, k, v, delta = inputs()
    with pytest.raises(registry.Unsupported, match="need a CUDA device"):
        backend.attend(q, k, v, delta=delta, plan=make_plan(delta, 4), scale=0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [100, 1500], ids=["gathers", "in order"])
def test_captured_in_a_graph_and_the_same_each_time(inputs, window):
    """Also that nothing waits for the device, which capture forbids."""
    leaves = inputs(1, 4, 2, 2000, 2000, 64, BF16, device="cuda", grad=True)
    attend = registry.get("dma/triton").attend
    plan = make_plan(leaves[3], window)
    dout = torch.randn_like(leaves[0])

    def step():
        out, lse = attend(*leaves[:3], delta=leaves[3], plan=plan, scale=0.125)
        return (out, lse, *torch.autograd.grad(out, leaves, dout))

    # Detached: a graph of autograd that is kept remembers this stream, and a capture must not touch it.
    eager = [x.detach().clone() for x in step()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
