"""The Hopper backward of dma/cuda, run on the CPU by the emulator and, where there is one, on a GPU."""

import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmabench.kernels import dma_cuda, make_plan
from dmabench.kernels.dma_cuda import hopper, hopper_backward, launch, ops
from dmabench.kernels.dma_cuda.hopper_backward import DqVariant

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def on_cpu(kernels_on_cpu, monkeypatch):
    """Runs kernels on CPU tensors, with fewer blocks than there are tasks."""
    monkeypatch.setattr(hopper, "multiprocessors", lambda _: 2)


class Case:
    """Inputs, what a forward leaves for the backward, and the gradients by definition."""

    def __init__(self, inputs, definition, grads, window, gathers, padding, monkeypatch, **options):
        leaves = inputs(**options, grad=True)
        self.leaves = q, k, v, delta = [x.detach() for x in leaves]
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


def shapes(longest):
    """Lengths (also beside multiples of 64 and 128), queries, windows, heads."""
    lengths = st.one_of(st.integers(1, longest), st.sampled_from([63, 64, 65, 127, 128, 129, 191, 193]))
    return st.tuples(lengths, st.floats(0, 1), st.floats(0, 1), st.sampled_from([(1, 2), (2, 2), (1, 4)]))


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=shapes(300), padding=st.booleans())
def test_dq_of_odd_shapes(drawn, padding, on_cpu, poisoned, inputs, definition, grads, close, monkeypatch):
    T, queries, window, (G, groups) = drawn
    Tq, w = max(1, round(queries * T)), max(1, round(window * T))
    options = dict(T=T, Tq=Tq, window=w, H=G * groups, G=G, D=64, dtype=FP16, gathers=True, padding=padding)
    Case(inputs, definition, grads, monkeypatch=monkeypatch, **options).check_dq(TWO, close)


@pytest.mark.parametrize(("head_dim", "groups"), [(64, 1), (64, 2), (128, 1), (128, 2), (128, 3), (128, 4)])
def test_variants_fit(head_dim, groups):
    chosen = hopper_backward.dq_variant(head_dim, groups)
    assert groups % chosen.heads == 0 and chosen.shared_bytes(head_dim) <= 227 << 10


def test_switches(monkeypatch):
    """Which path takes dq, by the switch and the card."""
    nothing, sums = torch.empty(0), torch.empty(0)
    asked = []
    monkeypatch.setattr(launch, "addressable", lambda x: x)
    monkeypatch.setattr(launch, "backward_dq", lambda *_: asked.append("plain dq") or (nothing, sums))
    monkeypatch.setattr(hopper_backward, "backward_dq", lambda *_: asked.append("dq") or (nothing, sums))
    monkeypatch.setattr(launch, "backward_dkdv", lambda *_: asked.append("plain dkdv") or (nothing,) * 3)
    for hopper_card in (False, True):
        monkeypatch.setattr(hopper, "_is_hopper", lambda _, answer=hopper_card: answer)
        for on in (False, True):
            monkeypatch.setattr(hopper, "DQ", on)
            ops._backward(*[nothing] * 6, [], [], *[nothing] * 3, 1.0)
    assert asked == ["plain dq", "plain dkdv"] * 3 + ["dq", "plain dkdv"]


# What is put wrong, in which file, and what the emulator says; "wrong" where the result shows it.
MUTANTS = {
    "dp not waited for": (
        "hopper_backward_dq.cu",
        "compute_before(never(p));\n        wgmma_wait<0>();",
        "wgmma_wait<1>();",
        "wrong|cp.async",
    ),
    "keys released early": (
        "hopper_backward_dq.cu",
        "wgmma_wait<1>();\n            settled(s);",
        "wgmma_wait<1>(); if (m == LAST_TILE) release(shared.empty_k(now.index));",
        "wrong|cp.async",
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
        case.check_dq(TWO, close)
    except emulator.EmulatorError as error:
        said = str(error)
    except AssertionError:
        said = "wrong"
    else:
        said = "not found"
    assert any(words in said for words in found.split("|")), said
