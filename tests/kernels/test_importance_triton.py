"""The Triton kernels of importance against its definition in float64: interpreted here, on a card where there is one.

The interpreter is chosen when a kernel is decorated and reaches into triton.language, so it gets a process of its own.
It is wrong in bfloat16, whose code is float16's: only the scale of the lower pieces of a weight differs.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")

from dmabench.kernels import importance, importance_kernels, importance_triton

# `compare` for one problem: delta, every gradient, and that both are the same once more.
COMPARE = """
import math
import torch
from dmabench.kernels import importance, importance_triton

def problem(B, G, T, D, dtype, device, layout="BGTD", size=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    shape = [{"B": B, "G": G, "T": T, "D": D}[letter] for letter in layout]
    v = random(*shape).permute([layout.index(letter) for letter in "BGTD"])
    weight = random(G * D, G) * (size / math.sqrt(G * D))
    gate, d_delta = random(G) * 0.5, random(B, G, T)
    leaves = [v.to(device, dtype), weight.to(device, torch.float32), gate.to(device, torch.float32)]
    return [x.requires_grad_() for x in leaves], d_delta.to(device, torch.float32)

def compare(*shape, dtype, parametrisation="exp", device="cpu", rtol=1e-5, sums=1e-5, **more):
    leaves, d_delta = problem(*shape, dtype, device, **more)
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    exact = importance(*exact_leaves, parametrisation)
    exact_gradients = torch.autograd.grad(exact, exact_leaves, d_delta.double())
    delta = importance_triton.importance(*leaves, parametrisation)
    gradients = torch.autograd.grad(delta, leaves, d_delta, retain_graph=True)
    assert delta.dtype == torch.float32 and delta.is_contiguous()
    torch.testing.assert_close(delta.double(), exact, rtol=rtol, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(delta, importance_triton.importance(*leaves, parametrisation))
    again = torch.autograd.grad(delta, leaves, d_delta)
    for name, leaf, found, same, right in zip(("v", "weight", "gate"), leaves, gradients, again, exact_gradients):
        assert found.dtype == leaf.dtype and found.shape == leaf.shape and torch.equal(found, same), name
        rounding = 1e-5 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps
        error, largest = (found.double() - right).abs(), right.abs().max()
        assert bool((error <= rounding * right.abs() + sums * largest).all()), (name, shape, error.max(), largest)
"""


def _interpret(code: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", f"{COMPARE}{code}\nprint('compared')"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0 and "compared" in ran.stdout, ran.stderr[-3000:]


def test_interpreted_kernels_agree_with_the_definition():
    _interpret(
        """
compare(2, 3, 37, 17, dtype=torch.float32)
compare(1, 8, 70, 16, dtype=torch.float32, layout="BTGD")
compare(1, 1, 1, 16, dtype=torch.float32, parametrisation="linear")
compare(1, 2, 300, 128, dtype=torch.float16, layout="BTGD")
compare(1, 8, 5, 40, dtype=torch.float16, parametrisation="linear")
compare(1, 17, 33, 32, dtype=torch.float16, layout="GBDT")
compare(1, 2, 20, 16, dtype=torch.float32, layout="TBGD", size=200.0, parametrisation="linear")
"""
    )


def test_interpreted_kernels_at_the_edges():
    _interpret(
        """
# Rows do not depend on one another.
(v, weight, gate), _ = problem(2, 2, 150, 32, torch.float16, "cpu")
whole = importance_triton.importance(v, weight, gate)
for t in (0, 63, 64, 149):
    assert torch.equal(importance_triton.importance(v[1:, :, t : t + 1], weight, gate), whole[1:, :, t : t + 1])

# Weights below float16's normal numbers keep their bits.
v = torch.randn(1, 1, 64, 16).half() * 2.0**-10
weight, gate = torch.rand(16, 1) * 2.0**-14, torch.ones(1)
sample = importance_triton.importance_forward(v, weight, gate, True, True)[1]
exact = v.double() @ weight.double()
torch.testing.assert_close(sample.double(), exact[..., 0], rtol=0, atol=1e-6 * float(exact.abs().max()))

# softplus and its derivative far from 0, where exp alone would overflow or lose all bits
x = torch.tensor([-200.0, -100, -87, -30, -17, -8, -1, 0, 1, 8, 15, 21, 90, 200, 1e30, math.inf, -math.inf, math.nan])
v = torch.zeros(1, 1, len(x), 16)
v[..., 0] = x
weight = torch.zeros(16, 1)
weight[0] = 1
v[..., 1:] = 0
v.requires_grad_()
delta = importance_triton.importance(v, weight, gate, "linear")
right = torch.nn.functional.softplus(x.double())
torch.testing.assert_close(delta[0, 0].double(), right, rtol=1e-6, atol=1e-38, equal_nan=True)
(dv,) = torch.autograd.grad(delta.sum(), v)
right = torch.sigmoid(x.double())
torch.testing.assert_close(dv[0, 0, :, 0].double(), right, rtol=1e-5, atol=1e-35, equal_nan=True)
"""
    )


def test_operators_are_what_torch_expects():
    _interpret(
        """
# Without test_aot_dispatch_dynamic, which takes 10 s to import; test_compiled_on_a_card stands for it.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
leaves, d_delta = problem(1, 2, 20, 16, torch.float16, "cpu", layout="BTGD")
torch.library.opcheck(torch.ops.dmabench.importance, (*leaves, True, True), test_utils=CHECKS)
leaves = [x.detach() for x in leaves]
torch.library.opcheck(torch.ops.dmabench.importance, (*leaves, False, False), test_utils="test_faketensor")
sample = importance_triton.importance_forward(*leaves, True, True)[1]
torch.library.opcheck(torch.ops.dmabench.importance_backward, (d_delta, *leaves, sample, True), test_utils=CHECKS)
for shape in [(0, 2, 5), (1, 2, 0)]:
    assert importance_triton.importance(torch.zeros(*shape, 16), torch.zeros(32, 2), torch.zeros(2)).shape == shape
leaves, _ = problem(1, 2, 0, 16, torch.float32, "cpu")
dv, d_weight, _ = torch.autograd.grad(importance_triton.importance(*leaves).sum(), leaves)
assert dv.shape == (1, 2, 0, 16) and not d_weight.any()
"""
    )


@pytest.mark.parametrize(
    ("dtype", "G", "arch"),
    [
        *((torch.bfloat16, 8, arch) for arch in (80, 90, 100)),
        *((dtype, 8, 90) for dtype in (torch.float16, torch.float32)),
        (torch.bfloat16, 64, 80),
    ],
)
def test_kernels_compile_for_a_card(dtype, G, arch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    parts = importance_kernels
    for kernel, constants, options in [
        (parts.forward_kernel, parts.forward_constants(dtype, G, 128, True, True), parts.FORWARD_OPTIONS),
        (parts.backward_kernel, parts.backward_constants(G, 128, True), parts.backward_options(G)),
    ]:
        values = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
        types = {"v_ptr": values, "dv_ptr": values}
        signature = {
            name: "constexpr" if name in constants else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constants)
        compiled = triton_compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 99 << 10  # what every card from sm_80 on has


def test_a_cpu_takes_the_definition(monkeypatch):
    monkeypatch.setattr(importance_triton, "importance", None)
    v = torch.randn(1, 2, 5, 8).bfloat16()
    assert importance(v, torch.randn(16, 2), torch.randn(2)).shape == (1, 2, 5)


@pytest.fixture(scope="module")
def on_a_card():
    """problem, compare, on the GPU"""
    names: dict = {}
    exec(COMPARE, names)
    return names


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("parametrisation", ["exp", "linear"])
def test_on_a_card(on_a_card, dtype, parametrisation):
    compare = on_a_card["compare"]
    for shape in [(1, 8, 8192, 128), (2, 3, 300, 17), (1, 1, 1, 64), (3, 2, 37, 40), (1, 64, 200, 128)]:
        for layout in ("BGTD", "BTGD"):
            # Tensor cores add with fewer bits than fp32 has, and cut the rest off, always to the same side. Seen on an
            # H100 (torch 2.11, triton 3.6): delta off by 3.8e-5 in fp16 and bf16, 1.04e-5 in fp32. The gradient of the
            # gate sums products of delta and softplus, each off by as much: 8.6e-5 of its largest element.
            options = {"device": "cuda", "layout": layout, "rtol": 6e-5, "sums": 1.2e-4}
            options["parametrisation"] = parametrisation
            compare(*shape, dtype=dtype, **options)


@pytest.mark.gpu
def test_rows_on_a_card_do_not_depend_on_one_another(on_a_card):
    (v, weight, gate), _ = on_a_card["problem"](2, 8, 5000, 128, torch.bfloat16, "cuda", layout="BTGD")
    with torch.no_grad():
        whole = importance(v, weight, gate)
        for start, end in [(0, 1), (63, 65), (4999, 5000), (100, 4000)]:
            assert torch.equal(importance(v[1:, :, start:end], weight, gate), whole[1:, :, start:end])
        assert torch.equal(importance(v.contiguous(), weight, gate), whole)


@pytest.mark.gpu
def test_compiled_on_a_card(on_a_card):
    leaves, d_delta = on_a_card["problem"](1, 2, 500, 64, torch.bfloat16, "cuda")
    compiled = torch.compile(importance, fullgraph=True)
    found, right = compiled(*leaves), importance(*leaves)
    assert torch.equal(found, right)
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, d_delta), torch.autograd.grad(right, leaves, d_delta), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
def test_values_beyond_32_bit_offsets_on_a_card():
    """2^20 rows 4096 values apart, as in a projection that q, k and v come from together."""
    together = torch.empty(1, 1 << 20, 4096, dtype=torch.bfloat16, device="cuda")
    v = together[..., 2048:].unflatten(-1, (16, 128)).transpose(1, 2)
    weight, gate = torch.randn(2048, 16, device="cuda") / 45, torch.ones(16, device="cuda")
    v[:, :, -100:] = torch.randn(1, 16, 100, 128, device="cuda").bfloat16()
    assert torch.equal(importance(v, weight, gate)[..., -100:], importance(v[:, :, -100:].contiguous(), weight, gate))
