"""The Hopper backward of dma/cuda, run on the CPU by the emulator and, where there is one, on a GPU."""

import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmabench.kernels import dma_cuda, dynamic_mask_attention, make_plan
from dmabench.kernels.dma_cuda import hopper, hopper_backward, launch, ops
from dmabench.kernels.dma_cuda.hopper_backward import DqVariant

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def on_cpu(kernels_on_cpu, monkeypatch):
    """Runs kernels on CPU tensors, with fewer blocks than there are tasks."""
    monkeypatch.setattr(hopper, "multiprocessors", lambda _: 3)


class Case:
    """Inputs, what a forward leaves for the backward, and the gradients by definition."""

    def __init__(self, inputs, definition, grads, window, gathers, padding, monkeypatch, **options):
        leaves = inputs(**options, grad=True)
        self.leaves = q, k, _, delta = [x.detach() for x in leaves]
        self.key_mask = None
        if padding:
            self.key_mask = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool)
            self.key_mask[0, : k.shape[2] // 3] = False
            self.key_mask[-1, k.shape[2] // 2 :] = False
        self.plan = make_plan(delta, window, key_mask=self.key_mask, query_len=q.shape[2])
        monkeypatch.setattr(type(self.plan), "gathers", gathers)
        self.live = definition.live_keys(delta, window, self.key_mask, q.shape[2])
        out, lse = definition.attention(*leaves, self.live)
        self.expected = dict(zip(("dq", "dk", "dv", "ddelta"), grads(out, leaves), strict=True))
        self.out = out.detach().to(q.dtype)
        self.dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(q.dtype)
        self.origins = self.plan.references(delta)
        rows = self.origins.repeat_interleave(q.shape[1] // k.shape[1], 1).repeat_interleave(launch.BLOCK_Q, 2)
        relative = (lse.detach() - rows[:, :, : q.shape[2]]) * math.log2(math.e)
        self.relative_lse = relative.float()
        self.rowsum = (self.dout.double() * self.out.double()).sum(-1)
        self.scale = q.shape[-1] ** -0.5

    def dq(self, chosen):
        q, k, v, delta = self.leaves
        visits = dma_cuda._visits(self.plan)
        given = (q, k, v, delta, self.plan.evict_BGT, self.origins, visits, self.out, self.relative_lse, self.dout)
        return hopper_backward.backward_dq(*given, self.scale, chosen=chosen)

    def check_dq(self, chosen, close):
        dq, rowsum = self.dq(chosen)
        close(dq, self.expected["dq"], self.leaves[0].dtype, "dq")
        close(rowsum, self.rowsum.float(), torch.float32, "row sums")

    def check_dkdv(self, close):
        q, k, v, delta = self.leaves
        ranges = dma_cuda._ranges(self.plan)
        pairs = self.plan.tiles(launch.BLOCK_Q, hopper_backward.PAIR)
        ends = pairs.step_ends(q.shape[1] // k.shape[1], launch.ROWS, self.plan.query_len)
        tiles = [self.plan.order_BGT, *ranges, ends]
        given = (q, k, v, delta, self.plan.evict_BGT, self.origins, tiles, self.relative_lse, self.rowsum.float())
        found = hopper_backward.backward_dkdv(*given, self.dout, self.scale)
        dead = ~self.live.any(-2)
        for name, mine in zip(("dk", "dv", "ddelta"), found, strict=True):
            close(mine, self.expected[name], q.dtype, name)
            assert not mine[dead].any(), f"{name} of keys that nobody attends to"


# Each combination of a head dimension, a variant and a way to visit keys is compiled, which takes seconds.
TWO, ONE = DqVariant(2, 3, 2), DqVariant(1, 2, 2)
DQ_CASES = {
    "one key": dict(T=1, window=1),
    "groups, padding": dict(T=200, Tq=180, window=30, B=2, H=4, G=2, padding=True),
    "one head a block": dict(T=300, window=64, H=3, G=1, D=128, dtype=BF16, variant=ONE),
    "few queries in order": dict(T=200, Tq=150, window=100, D=128, dtype=BF16, gathers=False),
}


@pytest.mark.parametrize("case", DQ_CASES)
def test_dq_against_the_definition(case, on_cpu, poisoned, inputs, definition, grads, close, monkeypatch):
    options = dict(H=2, G=1, D=64, dtype=FP16, gathers=True, padding=False, variant=TWO) | DQ_CASES[case]
    variant = options.pop("variant")
    Case(inputs, definition, grads, monkeypatch=monkeypatch, **options).check_dq(variant, close)


DKDV_CASES = {
    "one key": dict(T=1, window=1),
    "odd tiles": dict(T=190, window=7, H=2, G=1),
    "groups, padding": dict(T=300, Tq=180, window=30, B=2, H=6, G=2, padding=True),
    "wide": dict(T=300, window=64, H=2, G=1, D=128, dtype=BF16),
    "causal": dict(T=200, window=200),
}


@pytest.mark.parametrize("case", DKDV_CASES)
def test_dk_and_dv_against_the_definition(case, on_cpu, poisoned, inputs, definition, grads, close, monkeypatch):
    options = dict(H=1, G=1, D=64, dtype=FP16, gathers=False, padding=False) | DKDV_CASES[case]
    Case(inputs, definition, grads, monkeypatch=monkeypatch, **options).check_dkdv(close)


def shapes(longest):
    """Lengths (also beside multiples of 64 and 128), queries, windows, heads."""
    lengths = st.one_of(st.integers(1, longest), st.sampled_from([63, 64, 65, 127, 128, 129, 191, 193]))
    return st.tuples(lengths, st.floats(0, 1), st.floats(0, 1), st.sampled_from([(1, 2), (2, 2), (1, 4)]))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=shapes(300), padding=st.booleans(), blocks=st.sampled_from([1, 2, 7, 40]))
def test_odd_shapes(drawn, padding, blocks, on_cpu, poisoned, inputs, definition, grads, close, monkeypatch):
    """Also with more blocks than dk and dv have steps, so that some have none, and with one."""
    T, queries, window, (G, groups) = drawn
    Tq, w = max(1, round(queries * T)), max(1, round(window * T))
    options = dict(T=T, Tq=Tq, window=w, H=G * groups, G=G, D=64, dtype=FP16, gathers=True, padding=padding)
    case = Case(inputs, definition, grads, monkeypatch=monkeypatch, **options)
    monkeypatch.setattr(hopper, "multiprocessors", lambda _: blocks)
    case.check_dq(TWO, close)
    case.check_dkdv(close)


@pytest.mark.parametrize(("head_dim", "groups"), [(64, 1), (64, 2), (128, 1), (128, 2), (128, 3), (128, 4)])
def test_variants_fit(head_dim, groups):
    chosen = hopper_backward.dq_variant(head_dim, groups)
    assert groups % chosen.heads == 0 and chosen.shared_bytes(head_dim) <= 227 << 10
    assert hopper_backward.dkdv_shared_bytes(head_dim) <= 227 << 10


@pytest.mark.parametrize("hopper_card", [False, True])
@pytest.mark.parametrize(("dq", "dkdv"), [(False, False), (True, False), (False, True), (True, True)])
def test_switches(hopper_card, dq, dkdv, inputs, monkeypatch):
    """Which path takes what, by the switches and the card; and the plan's tiles are for the path that reads them."""
    x, asked = torch.empty(0), []
    monkeypatch.setattr(launch, "addressable", lambda x: x)
    for name, module in (("plain", launch), ("hopper", hopper_backward)):
        monkeypatch.setattr(module, "backward_dq", lambda *_, name=name: asked.append(name) or (x, x))
        monkeypatch.setattr(module, "backward_dkdv", lambda *_, name=name: asked.append(name) or (x, x, x))
    monkeypatch.setattr(hopper, "_is_hopper", lambda _: hopper_card)
    monkeypatch.setattr(hopper, "ON", {name for name, on in (("dq", dq), ("dkdv", dkdv)) if on})
    ops._backward(*[x] * 6, [], [], *[x] * 3, 1.0)
    assert asked == ["hopper" if hopper_card and on else "plain" for on in (dq, dkdv)]
    plan = make_plan(inputs(T=300)[3], 20)
    assert dma_cuda._tiles(plan, 2)[-1].numel() == (3 if hopper_card and dkdv else 5)


# What is put wrong, in which file, and what the emulator says; "wrong" where the result shows it.
MUTANTS = {
    "keys released early": (
        "hopper_backward_dq.cu",
        "wgmma_wait<1>();\n            settled(s);",
        "wgmma_wait<1>(); if (m == LAST_TILE) release(shared.empty_k(now.index));",
        "wrong|cp.async",
    ),
    "queries released early": (
        "hopper_backward_dkdv.cu",
        "const bool more = meets();",
        "const bool more = meets(); release(stage);",
        "wrong|cp.async",
    ),
    "a tile meets what the other meets": (
        "hopper_backward_dkdv.cu",
        "own.begin <= block && block < own.end",
        "own.begin < block",
        "wrong",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_finds_what_is_wrong(mutant, emulator, on_cpu, inputs, definition, grads, close, tmp_path, monkeypatch):
    file, right, wrong, found = MUTANTS[mutant]
    for source in launch.FOLDER.glob("*.cu*"):
        shutil.copy(source, tmp_path)
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    options = dict(T=400, window=200, H=2, G=1, D=64, dtype=FP16, gathers=True, padding=False)
    case = Case(inputs, definition, grads, monkeypatch=monkeypatch, **options)
    try:
        case.check_dq(TWO, close) if "dq" in file else case.check_dkdv(close)
    except emulator.EmulatorError as error:
        said = str(error)
    except AssertionError:
        said = "wrong"
    else:
        said = "not found"
    assert any(words in said for words in found.split("|")), said


GPU_CASES = {
    "gathered": dict(T=4096, window=256, H=4, G=2, D=128, dtype=BF16),
    "one head a block": dict(T=3000, window=200, H=6, G=2, D=128, dtype=FP16),
    "gathered, 64": dict(T=2500, window=300, H=4, G=1, D=64, dtype=FP16),
    "in order": dict(T=2000, window=1500, H=4, G=2, D=128, dtype=FP16),
    "few queries": dict(T=3000, Tq=700, window=200, B=2, H=4, G=2, D=64, dtype=BF16),
    "short": dict(T=77, window=20, H=2, G=1, D=128, dtype=BF16),
    "one query": dict(T=130, Tq=1, window=20, H=2, G=2, D=128, dtype=BF16),
}


@pytest.mark.gpu
@pytest.mark.parametrize(("dq", "dkdv"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("case", GPU_CASES)
def test_on_a_gpu(case, dq, dkdv, inputs, budget, monkeypatch):
    """Switched on: within the budget of the dtype, again and again the same, and near what the plain path says."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    options = dict(GPU_CASES[case])
    window = options.pop("window")
    leaves = inputs(**options, device="cuda", grad=True)
    q, delta = leaves[0], leaves[3]

    def attend():
        plan = make_plan(delta.detach(), window, query_len=q.shape[2])
        return dynamic_mask_attention(*leaves, window, plan=plan, backend="cuda")

    monkeypatch.setattr(hopper, "ON", set())
    plain = torch.autograd.grad(attend(), leaves, budget.dout(leaves))
    monkeypatch.setattr(hopper, "ON", {name for name, on in (("dq", dq), ("dkdv", dkdv)) if on})
    checked = budget.check(leaves, budget.by_heap(delta, window), q.shape[-1] ** -0.5, attend())
    found = [checked.found[name] for name in ("dq", "dk", "dv", "ddelta")]
    for _ in range(5):
        assert all(map(torch.equal, torch.autograd.grad(attend(), leaves, budget.dout(leaves)), found))
    assert dq or torch.equal(found[0], plain[0]), "what is switched off is the plain path's"
