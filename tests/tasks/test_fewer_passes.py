"""Filter, rotation and loss in fewer passes over memory are what the plain operations compute, gradients as well."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from dmabench.tasks.attention.base import RMSNorm, rotate
from dmabench.tasks.cache import Tail
from dmabench.tasks.labelled_loss import _SummedLoss
from dmabench.tasks.short_conv import ShortConv


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize(("width", "T"), [(4, 9), (4, 3), (1, 5), (3, 1)])
def test_the_filter_of_a_whole_sequence(width: int, T: int) -> None:
    conv, x = ShortConv(5, width).double(), draw(2, T, 5)
    with torch.no_grad():
        conv.weight.copy_(draw(5, width, seed=1))
    expected = conv(x, Tail(width - 1) if width > 1 else Tail(1), None)  # with a tail it goes by plain operations
    found = conv(x, None, None)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    weights = draw(*found.shape, seed=2)
    for one, two in zip(
        torch.autograd.grad((found * weights).sum(), [x, conv.weight]),
        torch.autograd.grad((expected * weights).sum(), [x, conv.weight]),
        strict=True,
    ):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_rotation_is_transformers_own(rows: int) -> None:
    q, k, angles = draw(2, 3, 7, 8), draw(2, 1, 7, 8, seed=1), draw(rows, 7, 4, seed=2).detach().repeat(1, 1, 2)
    cos, sin = 1.3 * angles.cos(), 1.3 * angles.sin()
    found, expected = rotate(q, k, {8: (cos, sin)}), apply_rotary_pos_emb(q, k, cos, sin)
    for one, two, x in zip(found, expected, (q, k), strict=True):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)
        weights = draw(*one.shape, seed=3)
        grads = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (one, two)]
        assert torch.allclose(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "weight"), [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, None)])
def test_the_norm_is_qwen3_s_up_to_rounding(dtype: torch.dtype, weight: torch.dtype | None) -> None:
    ours, theirs = (cls(16).to(weight or torch.float32) for cls in (RMSNorm, Qwen3RMSNorm))
    x = draw(4, 16).detach().to(dtype)
    assert ours(x).dtype == theirs(x).dtype
    assert torch.allclose(ours(x).float(), theirs(x).float(), rtol=1e-5 if dtype == torch.float32 else 0.02)


def test_the_loss_is_cross_entropy_with_what_has_no_label_left_out() -> None:
    hidden, weight = draw(6, 4), draw(9, 4, seed=1)
    targets = torch.tensor([3, -100, 0, 8, -100, 3])
    found = _SummedLoss.apply(hidden, weight, targets, torch.float64)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert torch.allclose(found, expected, rtol=1e-12)
    for one, two in zip(
        torch.autograd.grad(3 * found, [hidden, weight]),
        torch.autograd.grad(3 * expected, [hidden, weight]),
        strict=True,
    ):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


def test_the_loss_in_half_precision_keeps_its_gradient_where_a_target_is_nearly_certain() -> None:
    hidden = torch.tensor([[8.0, 0.0]]).requires_grad_()
    weight = torch.eye(2).requires_grad_()
    loss = _SummedLoss.apply(hidden, weight, torch.tensor([0]), torch.bfloat16)
    loss.backward()
    rest = 1 / (1 + torch.tensor(8.0).exp())  # 1 - p, far below the 0.004 between bf16 numbers near 1
    assert loss.item() == pytest.approx(float(torch.log1p(torch.tensor(-8.0).exp())), rel=1e-3)
    assert torch.allclose(hidden.grad[0], torch.stack([-rest, rest]), rtol=0.01)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
