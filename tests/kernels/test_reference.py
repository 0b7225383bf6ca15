"""The reference against ten naive lines in float64, and its gradients against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmabench.kernels import make_plan, reference


def _attend(q, k, v, delta, plan, scale=0.3, positions=None, rounding=None):
    if positions is None:
        positions = torch.arange(plan.query_offset, plan.key_len)
    return reference.attend(q, k, v, delta, plan.birth_BGT, plan.evict_BGT, scale, positions, rounding)


@settings(max_examples=60)
@given(
    B=st.integers(1, 2),
    G=st.integers(1, 2),
    groups=st.integers(1, 3),
    T=st.integers(1, 40),
    rows=st.floats(0, 1),
    D=st.integers(1, 20),
    w=st.integers(1, 45),
    padded=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_forward_and_every_gradient_in_float64(
    definition, inputs, grads, close, B, G, groups, T, rows, D, w, padded, seed
):
    Tq = max(1, round(rows * T))
    leaves = inputs(B, G * groups, G, Tq, T, D, torch.float64, seed, grad=True)
    key_mask = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.6 if padded else None
    delta = leaves[3]
    plan = make_plan(delta, w, key_mask=key_mask, query_len=Tq)
    out, lse = _attend(*leaves, plan)
    live = definition.live_keys(delta, w, key_mask, Tq)
    expected, expected_lse = definition.attention(*leaves, live, 0.3)
    close(out, expected)
    close(lse, expected_lse)
    names = ("dq", "dk", "dv", "ddelta")
    for name, found, right in zip(names, grads(out, leaves), grads(expected, leaves), strict=True):
        close(found.double(), right.double(), delta.dtype if name == "ddelta" else None, name)


@pytest.mark.parametrize(("H", "G", "Tq", "T", "w"), [(2, 2, 5, 5, 2), (4, 2, 3, 6, 3), (3, 1, 6, 6, 9)])
def test_gradients_are_finite_differences(inputs, H, G, Tq, T, w):
    q, k, v, delta = inputs(1, H, G, Tq, T, 3, torch.float64, grad=True)
    delta = delta.detach().double().requires_grad_()
    key_mask = torch.arange(T)[None] != 1
    plan = make_plan(delta, w, key_mask=key_mask, query_len=Tq)
    assert torch.autograd.gradcheck(lambda *x: _attend(*x, plan)[0], (q, k, v, delta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precisions_cost_what_the_dtype_costs(definition, inputs, grads, close, dtype):
    leaves = inputs(2, 4, 2, 50, 70, 24, dtype, grad=True)
    plan = make_plan(leaves[3], 20, query_len=50)
    out, lse = _attend(*leaves, plan)
    assert out.dtype == dtype and lse.dtype == torch.float32
    expected, expected_lse = definition.attention(*leaves, definition.live_keys(leaves[3], 20, None, 50), 0.3)
    close(out, expected)
    close(lse, expected_lse, torch.float32)
    for x, found, right in zip(leaves, grads(out, leaves), grads(expected, leaves), strict=True):
        assert found.dtype == x.dtype
        # dout is rounded to the dtype, so ddelta is as coarse as the others, though it is float32 itself.
        close(found, right, dtype)


def test_any_subset_of_the_rows_in_any_order(inputs, grads):
    leaves = inputs(2, 4, 2, 60, 60, 8, torch.float64, grad=True)
    q, k, v, delta = leaves
    plan = make_plan(delta, 11)
    positions = torch.tensor([59, 0, 17, 18, 3])
    out, lse = _attend(q[:, :, positions], k, v, delta, plan, positions=positions)
    whole, whole_lse = _attend(*leaves, plan)
    torch.testing.assert_close(out, whole[:, :, positions])
    torch.testing.assert_close(lse, whole_lse[:, :, positions])
    for found, right in zip(grads(out, leaves), grads(whole[:, :, positions], leaves), strict=True):
        torch.testing.assert_close(found, right)


def test_rows_without_a_live_key_give_nothing_and_take_nothing(inputs, grads):
    leaves = inputs(2, 4, 2, 20, 20, 8, grad=True)
    key_mask = torch.ones(2, 20, dtype=torch.bool)
    key_mask[0, :7] = False
    key_mask[1] = False
    out, lse = _attend(*leaves, make_plan(leaves[3], 5, key_mask=key_mask))
    empty = torch.zeros(2, 20, dtype=torch.bool)
    empty[0, :7] = empty[1] = True
    assert not out.transpose(1, 2)[empty].any()
    assert bool((lse.transpose(1, 2)[empty] == -torch.inf).all())
    assert bool(lse.transpose(1, 2)[~empty].isfinite().all())
    dq, dk, dv, ddelta = grads(out, leaves)
    assert not dq.transpose(1, 2)[empty].any()
    for grad in (dk, dv):
        assert not grad.transpose(1, 2)[~key_mask].any()
    assert not ddelta.transpose(1, 2)[~key_mask].any()
    assert all(bool(x.isfinite().all()) for x in (dq, dk, dv, ddelta))
    assert bool(dq.transpose(1, 2)[~empty].any(-1).any(-1)[1:].all())  # the first real row has one key, so no gradient


def test_a_dead_key_with_a_nan_delta_poisons_nothing(inputs, grads):
    leaves = inputs(1, 2, 2, 30, 30, 8, torch.float64, grad=True)
    with torch.no_grad():
        leaves[3][0, 1, 12] = torch.nan
    out, lse = _attend(*leaves, make_plan(leaves[3], 6))
    found = (out, lse, *grads(out, leaves))
    assert all(bool(x.isfinite().all()) for x in found)
    assert not found[3][0, 1, 12].any() and not found[5][0, 1, 12].any()


@pytest.mark.parametrize("elements", [1, 777, 4000])
def test_blocks_change_nothing(monkeypatch, inputs, grads, elements):
    leaves = inputs(2, 4, 2, 33, 47, 8, torch.float64, grad=True)
    plan = make_plan(leaves[3], 12, query_len=33)
    out, lse = _attend(*leaves, plan)
    right = grads(out, leaves)
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", elements)
    sizes = [block.stop - block.start for block in reference._row_blocks(torch.empty(2, 2, 2, 33, 8), 47)]
    assert sum(sizes) == 33 and len(sizes) > 1
    in_blocks, lse_in_blocks = _attend(*leaves, plan)
    torch.testing.assert_close(in_blocks, out)
    torch.testing.assert_close(lse_in_blocks, lse)
    for found, expected in zip(grads(in_blocks, leaves), right, strict=True):
        torch.testing.assert_close(found, expected)


def test_rounding_is_what_tensor_cores_do(definition, inputs, grads):
    """Probabilities are rounded before p v and p^T dout; their gradients before ds k and ds^T q, but not for ddelta."""
    leaves = inputs(1, 4, 2, 40, 40, 16, torch.float32, grad=True)
    q, k, v, delta = (x.detach().double() for x in leaves)
    live = definition.live_keys(delta, 15)
    plan = make_plan(leaves[3], 15)
    out, _ = _attend(*leaves, plan, rounding=torch.bfloat16)
    dout = torch.randn(out.shape, dtype=torch.float64)
    dq, dk, dv, ddelta = torch.autograd.grad(out, leaves, dout.float())

    k, v, delta, live = (x.repeat_interleave(2, 1) for x in (k, v, delta, live))
    scores = (q @ k.transpose(-1, -2) * 0.3 + delta[:, :, None]).masked_fill(~live, -torch.inf)
    p = scores.softmax(-1)
    rounded = p.bfloat16().double()
    expected = rounded @ v
    stored = expected.bfloat16().double()
    ds = p * (dout @ v.transpose(-1, -2) - (dout * stored).sum(-1, keepdim=True))
    ds_rounded = ds.bfloat16().double()

    def by_group(x):
        return x.unflatten(1, (2, 2)).sum(2)

    # Values next to a rounding boundary may fall on either side of it in float32 and float64, hence the norm.
    for found, right in (
        (out, expected),
        (dq, ds_rounded @ k * 0.3),
        (dk, by_group(ds_rounded.transpose(-1, -2) @ q * 0.3)),
        (dv, by_group(rounded.transpose(-1, -2) @ dout)),
        (ddelta, by_group(ds.sum(2))),
    ):
        assert float((found.detach().double() - right).norm() / right.norm()) < 2e-4
    exact, _ = _attend(*leaves, plan)
    assert float((out - exact).detach().norm() / exact.detach().norm()) > 5e-4  # and the rounding does show


def test_lse_has_no_gradient(inputs):
    leaves = inputs(1, 2, 1, 8, 8, 4, grad=True)
    _, lse = _attend(*leaves, make_plan(leaves[3], 3))
    assert not lse.requires_grad


def test_delta_may_stay_float32_beside_float64(inputs, grads):
    leaves = inputs(1, 2, 1, 8, 8, 4, torch.float64, grad=True)
    out, lse = _attend(*leaves, make_plan(leaves[3], 3))
    assert (out.dtype, lse.dtype) == (torch.float64, torch.float64)
    assert [x.dtype for x in grads(out, leaves)] == [torch.float64] * 3 + [torch.float32]
