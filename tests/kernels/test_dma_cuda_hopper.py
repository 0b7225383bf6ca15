"""The Hopper forward of dma/cuda, run on the CPU by the emulator, which finds what is put wrong on purpose."""

import shutil
from importlib.util import find_spec, module_from_spec

import pytest
import torch

from dmabench.kernels import dma_cuda, make_plan
from dmabench.kernels.dma_cuda import hopper, launch
from dmabench.kernels.dma_cuda.hopper import Variant

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def on_cpu(kernels_on_cpu, monkeypatch):
    """Runs the kernel on CPU tensors, with fewer blocks than there are tasks."""
    monkeypatch.setattr(hopper, "multiprocessors", lambda _: 2)
    monkeypatch.setattr(launch, "_blocks_at_once", lambda _: 3)


def arguments(leaves, window, gathers, key_mask=None, monkeypatch=None):
    """Of hopper.forward, and the plan."""
    q, k, v, delta = leaves
    plan = make_plan(delta, window, key_mask=key_mask, query_len=q.shape[2])
    if monkeypatch is not None:
        monkeypatch.setattr(type(plan), "gathers", gathers)
    visits = dma_cuda._visits(plan)
    return q, k, v, delta, plan.evict_BGT, plan.references(delta), visits, q.shape[-1] ** -0.5


# Two variants of the source for each head dimension and way to visit keys: each takes seconds to compile.
SMALL, SMALL_ALONE = Variant(64, 2, 2), Variant(64, 1, 2)
CASES = {
    "one key": dict(T=1, window=1),
    "window 1": dict(T=37, window=1),
    "window 7": dict(T=200, window=7),
    "groups": dict(T=300, window=64, H=8, G=2),
    "one head a block": dict(T=300, window=64, H=3, G=3, variant=SMALL_ALONE),
    "few queries": dict(T=300, Tq=150, window=40, H=4, G=2),
    "padding": dict(T=200, window=30, B=2, padding=True),
    "wide": dict(T=300, window=64, D=128, dtype=BF16, variant=Variant(64, 2, 4)),
    "wide, one head a block": dict(T=300, window=64, D=128, dtype=BF16, G=2, variant=Variant(128, 1, 2)),
    "in order": dict(T=300, window=64, gathers=False),
    "causal": dict(T=300, window=300, gathers=False),
    "few queries in order": dict(T=300, Tq=150, window=100, gathers=False),
    "padding in order": dict(T=200, window=30, B=2, padding=True, gathers=False),
    "steps across tiles": dict(T=250, window=30, B=2, padding=True, gathers=False, variant=Variant(128, 2, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_against_the_definition(case, on_cpu, poisoned, inputs, definition, close, monkeypatch):
    options = dict(H=2, G=1, D=64, dtype=FP16, gathers=True, padding=False, variant=SMALL) | CASES[case]
    window, gathers, padding, chosen = (options.pop(name) for name in ("window", "gathers", "padding", "variant"))
    leaves = inputs(**options)
    q, k, _, delta = leaves
    key_mask = None
    if padding:
        key_mask = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool)
        key_mask[0, : k.shape[2] // 3] = False
        key_mask[-1, k.shape[2] // 2 :] = False
    given = arguments(leaves, window, gathers, key_mask, monkeypatch)
    live = definition.live_keys(delta, window, key_mask, q.shape[2])
    expected, expected_lse = definition.attention(*leaves, live)
    out, lse, relative_lse = hopper.forward(*given, chosen=chosen)
    close(out, expected, q.dtype, "out")
    close(lse, expected_lse.float(), torch.float32, "lse")
    close(relative_lse, launch.forward(*given)[2], torch.float32, "relative lse")


def test_serves_the_operator(on_cpu, inputs, definition, grads, close, monkeypatch):
    """Where it is on and the card is a Hopper, attention and its gradients come from it."""
    leaves = inputs(T=200, H=2, D=64, dtype=FP16, grad=True)
    q, _, _, delta = leaves
    plan = make_plan(delta.detach(), 20)
    assert not hopper.serves("forward", q.device)
    calls = []
    forward = hopper.forward
    monkeypatch.setattr(hopper, "_is_hopper", lambda _: True)
    monkeypatch.setattr(hopper, "variant", lambda *_: SMALL)
    monkeypatch.setattr(hopper, "forward", lambda *a: calls.append(a) or forward(*a))
    out, _ = dma_cuda.attend(*leaves[:3], delta=delta, plan=plan, scale=0.125)
    expected, _ = definition.attention(*leaves, definition.live_keys(delta.detach(), 20))
    assert len(calls) == 1
    close(out, expected, q.dtype, "out")
    for found, wanted in zip(grads(out, leaves), grads(expected, leaves), strict=True):
        close(found, wanted, q.dtype)


# What is put wrong, in which file, and what the emulator says; "wrong" where the result shows it.
MUTANTS = {
    "stride of a descriptor": ("hopper.cuh", "STRIDE = 1024 >> 4", "STRIDE = 2048 >> 4", "wrong|cp.async"),
    "kind of swizzle": ("hopper.cuh", "SWIZZLE_128 = 1ull << 62", "SWIZZLE_128 = 2ull << 62", "no 128-byte swizzle"),
    "next columns of V": (
        "hopper_consumer.cuh",
        "shared_address(tile), KEYS * ROW)",
        "shared_address(tile), ROW)",
        "wrong",
    ),
    "step along D": ("hopper_consumer.cuh", "within = i % 4 * 32", "within = i % 4 * 16", "wrong"),
    "step along keys": (
        "hopper_consumer.cuh",
        "further(b_tile, i * 16 * ROW)",
        "further(b_tile, i * 8 * ROW)",
        "wrong",
    ),
    "pieces not permuted": ("hopper_copy.cuh", "((piece & 7) ^ within) * 16", "(piece & 7) * 16", "wrong"),
    "parity": (
        "hopper_consumer.cuh",
        "full_v(at.index), at.parity",
        "full_v(at.index), at.parity ^ 1",
        "cp.async|wrong",
    ),
    "no proxy fence": (
        "hopper_consumer.cuh",
        "full_k(k_ring.index), k_ring.parity);\n        fence_for_wgmma();",
        "full_k(k_ring.index), k_ring.parity);",
        "no fence.proxy.async between",
    ),
    "no fence of registers": (
        "hopper_forward.cu",
        "wgmma_fence();\n            if (m < LAST_TILE",
        "if (m < LAST_TILE",
        "without wgmma.fence",
    ),
    "scores not waited for": ("hopper_forward.cu", "wgmma_wait<1>();", "wgmma_wait<2>();", "wrong"),
    "values not waited for": (
        "hopper_forward.cu",
        "sum[1] == -1.0f);\n            wgmma_wait<0>();",
        "sum[1] == -1.0f);",
        "wrong|cp.async|without wgmma.fence",
    ),
    "keys never released": (
        "hopper_forward.cu",
        "if (other == LAST_TILE) release",
        "if (false) release",
        "nobody can go on",
    ),
    "values released early": (
        "hopper_forward.cu",
        "if (m == LAST_TILE && LAST) break;",
        "if (m == LAST_TILE && LAST) break; if (m == LAST_TILE) release(shared.empty_v(now.index));",
        "wrong|cp.async",
    ),
    "queries replaced early": (
        "hopper_forward.cu",
        "wait_for_one_another();\n        copy_queries",
        "copy_queries",
        "wrong|cp.async",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_finds_what_is_wrong(mutant, emulated, emulator, on_cpu, poisoned, inputs, definition, tmp_path, monkeypatch):
    file, right, wrong, found = MUTANTS[mutant]
    for source in launch.FOLDER.glob("*.cu*"):
        shutil.copy(source, tmp_path)
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    leaves = inputs(T=700, H=2, D=128, dtype=BF16)
    given = arguments(leaves, 300, True, monkeypatch=monkeypatch)
    try:
        out, _, _ = hopper.forward(*given, chosen=Variant(64, 2, 2))
    except emulator.EmulatorError as error:
        said = str(error)
    else:
        expected, _ = definition.attention(*leaves, definition.live_keys(leaves[3], 300))
        assert not bool(((out.double() - expected).abs() < 0.05).all()), "not found"
        said = "wrong"
    assert any(words in said for words in found.split("|")), said


@pytest.mark.parametrize(("head_dim", "groups"), [(64, 1), (64, 2), (128, 1), (128, 2), (128, 3), (128, 4)])
def test_variants_fit(head_dim, groups):
    chosen = hopper.variant(head_dim, groups)
    assert groups % chosen.heads == 0 and chosen.shared_bytes(head_dim) <= 227 << 10


@pytest.mark.parametrize(
    ("value", "on", "wrong"),
    [
        (None, {"forward", "dq", "dkdv"}, None),
        ("none", set(), None),
        ("forward, dq,dkdv", {"forward", "dq", "dkdv"}, None),
        ("dk", {"dk"}, "DMABENCH_HOPPER names 'dk'; choose from forward, dq, dkdv and none"),
    ],
)
def test_the_switch_is_read_when_the_module_is_imported(value, on, wrong, monkeypatch):
    monkeypatch.delenv(hopper.SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(hopper.SWITCH, value)
    fresh = module_from_spec(find_spec(hopper.__name__))
    fresh.__spec__.loader.exec_module(fresh)
    assert on == fresh.ON and fresh.misnamed() == wrong
    monkeypatch.setattr(hopper, "ON", fresh.ON)
    assert wrong is None or dma_cuda.missing("cuda") == wrong
