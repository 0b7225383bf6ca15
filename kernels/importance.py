"""How important each key is: delta, computed from the values (arXiv 2508.02124, Eq. 4-5 and Listing 1)."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from dmabench.kernels import importance_triton
except ImportError:  # no Triton: not Linux
    importance_triton = None  # type: ignore[assignment]

PARAMETRISATIONS = ("exp", "linear")


def importance(v_BGTD: Tensor, weight: Tensor, gate: Tensor, parametrisation: str = "exp") -> Tensor:
    """Importance of every key, `exp(gate * softplus(concat_heads(v) @ weight))`.

    Args:
        v_BGTD: values [B, G, T, D], any floating dtype.
        weight: sampling weight [G*D, G]; it mixes all value heads.
        gate: [G], one scalar a head. Zero gives constant importance, which is a sliding window, and weight no gradient.
        parametrisation: "exp" is the paper's; "linear" drops the exp (the authors' code since 2025-10: no overflow).

    Returns:
        delta [B, G, T], float32 (float64 when v is float64), differentiable through v, weight and gate.

    Raises:
        ValueError: shapes that do not fit, or an unknown parametrisation.
    """
    if v_BGTD.dim() != 4:
        raise ValueError(f"v must be [B, G, T, D], got {v_BGTD.dim()} dimensions")
    _, G, _, D = v_BGTD.shape
    if weight.shape != (G * D, G) or gate.shape != (G,):
        raise ValueError(
            f"for v of shape {tuple(v_BGTD.shape)} weight must be {(G * D, G)} and gate {(G,)}, "
            f"got {tuple(weight.shape)} and {tuple(gate.shape)}"
        )
    if parametrisation not in PARAMETRISATIONS:
        raise ValueError(f"parametrisation must be one of {PARAMETRISATIONS}, got {parametrisation!r}")
    if _triton_takes(v_BGTD, weight, gate):
        return importance_triton.importance(v_BGTD, weight, gate, parametrisation)
    return _definition(v_BGTD, weight, gate, parametrisation)


def _definition(v_BGTD: Tensor, weight: Tensor, gate: Tensor, parametrisation: str) -> Tensor:
    """The formula in tensor operations, for every device and dtype."""
    B, G, T, D = v_BGTD.shape
    device = v_BGTD.device.type
    # The ranking is as fine as delta: computed in half precision (as autocast would), almost all keys would tie.
    dtype = torch.float64 if v_BGTD.dtype == torch.float64 else torch.float32
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        v_BTC = v_BGTD.transpose(1, 2).reshape(B, T, G * D).to(dtype)
        strength = gate.to(dtype) * F.softplus(v_BTC @ weight.to(dtype))
        delta_BTG = strength.exp() if parametrisation == "exp" else strength
        return delta_BTG.transpose(1, 2).contiguous()


def _triton_takes(v: Tensor, weight: Tensor, gate: Tensor) -> bool:
    """Whether the kernel that reads the values once can run on these."""
    return (
        importance_triton is not None
        and v.is_cuda
        and v.dtype in importance_triton.DTYPES
        and v.shape[1] <= importance_triton.MAX_HEADS
        and weight.device == gate.device == v.device
    )
