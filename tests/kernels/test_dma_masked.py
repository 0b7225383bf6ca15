"""dma/sdpa-masked where it differs from the other backends: its mask, made ahead, kept, and paid for in T^2.

That it computes the function is tested with the reference in test_dma.py.
"""

import pytest
import torch

from dmabench.kernels import Problem, dma_masked, dynamic_mask_attention, make_plan, registry


def _problem(dtype: torch.dtype, backward: bool = False, T: int = 40) -> Problem:
    return Problem("cpu", dtype, 2, 4, 2, T, T, 8, 9, backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_made_ahead_is_the_one_used(monkeypatch, inputs, dtype):
    q, k, v, delta = inputs(2, 4, 2, 40, 40, 8, dtype)
    expected = dynamic_mask_attention(q, k, v, delta, 9, backend="sdpa-masked")
    plan = make_plan(delta, 9)
    dma_masked.prepare(plan=plan, delta=delta, problem=_problem(dtype))
    monkeypatch.setattr(dma_masked._Mask, "apply", lambda *_: pytest.fail("made again"))
    assert torch.equal(dynamic_mask_attention(q, k, v, delta, 9, plan=plan, backend="sdpa-masked"), expected)


def test_a_mask_of_another_delta_is_not_used(inputs):
    """Two layers may share lifetimes and differ in delta by a factor that keeps its order."""
    q, k, v, delta = inputs(2, 4, 2, 40, 40, 8)
    plan = make_plan(delta, 9)
    dma_masked.prepare(plan=plan, delta=delta, problem=_problem(torch.float32))
    found = dynamic_mask_attention(q, k, v, 3 * delta, 9, plan=plan, backend="sdpa-masked")
    torch.testing.assert_close(found, dynamic_mask_attention(q, k, v, 3 * delta, 9))


def test_gradients_flow_after_a_mask_was_made_ahead(inputs, grads):
    leaves = inputs(2, 4, 2, 40, 40, 8, grad=True)
    plan = make_plan(leaves[3], 9)
    dma_masked.prepare(plan=plan, delta=leaves[3], problem=_problem(torch.float32, backward=True))
    out = dynamic_mask_attention(*leaves, 9, plan=plan, backend="sdpa-masked")
    right = grads(dynamic_mask_attention(*leaves, 9), leaves)
    for found, expected in zip(grads(out, leaves), right, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_workspace_is_the_mask_in_floats_and_in_bools():
    plan = make_plan(torch.randn(2, 2, 40), 9)
    for dtype in (torch.float32, torch.bfloat16):
        made = dma_masked._live(plan)
        mask = dma_masked._Mask.apply(torch.randn(2, 2, 40), made, 2, dtype)
        assert mask.shape == (2, 4, 40, 40) and mask.dtype == dtype
        counted = registry.get("dma/sdpa-masked").workspace(_problem(dtype))
        assert counted == mask.untyped_storage().nbytes() + made.untyped_storage().nbytes()


def test_refuses_only_the_backward_in_half_precision():
    refusal = registry.get("dma/sdpa-masked").refusal
    assert "too coarse for ddelta; use --dtype fp32" in (refusal(_problem(torch.bfloat16, backward=True)) or "")
    assert "too coarse" in (refusal(_problem(torch.float16, backward=True)) or "")
    assert refusal(_problem(torch.bfloat16)) is None
    assert refusal(_problem(torch.float32, backward=True)) is None
