"""Products that stay wide, against float64."""

import pytest
import torch

from dmabench.kernels import products


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leading", [(3,), (2, 3)])
def test_scores_are_as_exact_as_their_inputs(dtype, leading):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*leading, n, 64, generator=generator).to(dtype) for n in (5, 7))
    found, exact = products.wide_product(a, b), a.double() @ b.double().mT
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("keys", [1, 7, 8, 15, 16, 40, 43])
def test_sums_in_pieces_are_the_sum(monkeypatch, keys):
    monkeypatch.setattr(products, "SPLIT", 8)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, 4, keys, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, keys, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    found, exact = products.weighted_sum(weights, values), weights @ values
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-13)
    for one, other in zip(
        *(torch.autograd.grad(x.square().sum(), (weights, values)) for x in (found, exact)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_long_sums_of_half_precision_do_not_stall():
    """2^16 ones: bfloat16 cannot count beyond 256."""
    weights, values = torch.ones(1, 1, 1 << 16), torch.ones(1, 1 << 16, 1, dtype=torch.bfloat16)
    assert float(products.weighted_sum(weights, values)) == 1 << 16
