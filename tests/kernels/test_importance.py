"""delta from the values: the formula, its precision, its gradients, its errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.kernels import importance, make_plan


def _weights(G: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(G * D, G, generator=generator, dtype=torch.float64) / math.sqrt(G * D)
    return weight.to(dtype), torch.randn(G, generator=generator, dtype=torch.float64).to(dtype)


@given(B=st.integers(1, 3), G=st.integers(1, 3), T=st.integers(1, 5), D=st.integers(1, 4), seed=st.integers(0, 99))
def test_is_the_formula_number_by_number(B, G, T, D, seed):
    v = torch.randn(B, G, T, D, generator=torch.Generator().manual_seed(seed))
    weight, gate = _weights(G, D, seed=seed)
    found, linear = importance(v, weight, gate), importance(v, weight, gate, parametrisation="linear")
    for b in range(B):
        for t in range(T):
            heads = [float(v[b, g, t, d]) for g in range(G) for d in range(D)]
            for g in range(G):
                sample = sum(x * float(w) for x, w in zip(heads, weight[:, g], strict=True))
                strength = float(gate[g]) * math.log1p(math.exp(sample))
                assert float(linear[b, g, t]) == pytest.approx(strength, rel=1e-5, abs=1e-6)
                assert float(found[b, g, t]) == pytest.approx(math.exp(strength), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_is_float32_whatever_the_values_are(dtype):
    v = torch.randn(2, 2, 500, 8).to(dtype)
    weight, gate = _weights(2, 8, dtype)
    delta = importance(v, weight, gate)
    assert delta.dtype == torch.float32 and delta.shape == (2, 2, 500) and delta.is_contiguous()
    assert torch.equal(delta, importance(v.float(), weight.float(), gate.float()))
    # Computed in bfloat16 there would be at most a few hundred distinct values, and most keys would tie.
    assert delta[0, 0].unique().numel() > 490


def test_autocast_does_not_coarsen_it():
    v = torch.randn(1, 2, 50, 8)
    weight, gate = _weights(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        delta = importance(v, weight, gate)
    assert torch.equal(delta, importance(v, weight, gate))


def test_takes_strided_values():
    v = torch.randn(2, 7, 3, 4).transpose(1, 2)
    weight, gate = _weights(3, 4)
    assert torch.equal(importance(v, weight, gate), importance(v.contiguous(), weight, gate))


@pytest.mark.parametrize("parametrisation", ["exp", "linear"])
def test_every_gradient_in_float64(parametrisation):
    v = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    weight, gate = (x.requires_grad_() for x in _weights(2, 2, torch.float64))
    assert importance(v, weight, gate, parametrisation).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda *x: importance(*x, parametrisation), (v, weight, gate))


def test_a_gate_of_zero_ties_all_keys_and_gives_the_weight_no_gradient():
    v = torch.randn(1, 2, 6, 4)
    weight, _ = (x.requires_grad_() for x in _weights(2, 4))
    gate = torch.zeros(2, requires_grad=True)
    delta = importance(v, weight, gate)
    assert torch.equal(delta, torch.ones(1, 2, 6))
    d_weight, d_gate = torch.autograd.grad(delta.sum(), (weight, gate))
    assert not d_weight.any() and bool((d_gate > 0).all())


def test_linear_survives_the_gate_that_overflows_exp():
    v = torch.full((1, 1, 4, 2), 10.0)
    weight, gate = torch.ones(2, 1), torch.tensor([100.0])
    assert not bool(make_plan(importance(v, weight, gate), 2).finite)
    assert bool(make_plan(importance(v, weight, gate, "linear"), 2).finite)


@pytest.mark.parametrize(
    ("v", "weight", "gate", "parametrisation", "message"),
    [
        ((2, 3, 4), (12, 3), (3,), "exp", r"v must be \[B, G, T, D\], got 3 dimensions"),
        ((1, 2, 3, 4), (4, 2), (2,), "exp", r"weight must be \(8, 2\) and gate \(2,\), got \(4, 2\) and \(2,\)"),
        ((1, 2, 3, 4), (8, 2), (1,), "exp", r"gate \(2,\), got \(8, 2\) and \(1,\)"),
        ((1, 2, 3, 4), (8, 2), (2,), "tanh", r"one of \('exp', 'linear'\), got 'tanh'"),
    ],
)
def test_refuses_what_does_not_fit(v, weight, gate, parametrisation, message):
    with pytest.raises(ValueError, match=message):
        importance(torch.zeros(v), torch.zeros(weight), torch.zeros(gate), parametrisation)
