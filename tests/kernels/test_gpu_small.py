"""Every kernel of ours on small odd shapes: quick to run, and what compute-sanitizer is given (see CONTRIBUTING)."""

import pytest
import torch

from dmabench.kernels import dynamic_mask_attention, importance, make_plan

pytestmark = pytest.mark.gpu

SHAPES = [
    # B, H, G, Tq, T, D, window; small windows gather their keys, large ones go through them in order
    (1, 2, 1, 1, 1, 64, 1),
    (2, 4, 2, 37, 37, 64, 5),
    (1, 4, 1, 300, 300, 128, 40),
    (2, 2, 1, 200, 333, 64, 300),
    (1, 4, 2, 515, 515, 128, 60),
    (1, 2, 2, 130, 2500, 64, 100),
    (1, 2, 1, 2177, 2177, 128, 2177),
]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_kernels(inputs, grads, close, backend, dtype, shape):
    B, H, G, Tq, T, D, w = shape
    leaves = inputs(B, H, G, Tq, T, D, dtype, seed=T, grad=True, device="cuda")
    key_mask = torch.ones(B, T, dtype=torch.bool, device="cuda")
    key_mask[0, : T // 5] = False
    found, expected = [], []
    for name, into in ((backend, found), ("reference", expected)):
        out = dynamic_mask_attention(*leaves, w, key_mask=key_mask, backend=name)
        into += [out, *grads(out, leaves)]
    for what, mine, right in zip(("out", "dq", "dk", "dv", "ddelta"), found, expected, strict=True):
        close(mine, right, dtype, what)


@pytest.mark.parametrize("T", [1, 37, 2049, 5000])
def test_importance_and_plan(inputs, T):
    v = inputs(2, 3, 3, T, T, 64, torch.bfloat16, device="cuda")[2]
    weight, gate = torch.randn(192, 3, device="cuda") / 14, torch.randn(3, device="cuda")
    delta = importance(v, weight, gate)
    expected = importance(v.double(), weight.double(), gate.double())
    torch.testing.assert_close(delta.double(), expected, rtol=1e-4, atol=1e-5)
    plan = make_plan(delta, 50, query_len=max(1, T - 3))
    assert torch.equal(plan.evict_BGT.cpu(), make_plan(delta.cpu(), 50).evict_BGT)
    order = plan.order_BGT.sort(-1).values.cpu()
    assert torch.equal(order, torch.arange(T, dtype=torch.int32).expand_as(order))
    assert plan.tiles(128, 64).executed_pairs() > 0
    if plan.gathers:
        assert int(plan.key_lists().count_BGQ.max()) <= 50 + 127
