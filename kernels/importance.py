"""How important each key is: delta, computed from the values (arXiv 2508.02124, Eq. 4-5 and Listing 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    B, G, T, D = v_BGTD.shape
    if weight.shape != (G * D, G) or gate.shape != (G,):
        raise ValueError(
            f"for v of shape {tuple(v_BGTD.shape)} weight must be {(G * D, G)} and gate {(G,)}, "
            f"got {tuple(weight.shape)} and {tuple(gate.shape)}"
        )
    if parametrisation not in PARAMETRISATIONS:
        raise ValueError(f"parametrisation must be one of {PARAMETRISATIONS}, got {parametrisation!r}")
    # The ranking is as fine as delta: computed in half precision, almost all keys would tie.
    dtype = torch.float64 if v_BGTD.dtype == torch.float64 else torch.float32
    v_BTC = v_BGTD.transpose(1, 2).reshape(B, T, G * D).to(dtype)
    strength = gate.to(dtype) * F.softplus(v_BTC @ weight.to(dtype))
    delta_BTG = strength.exp() if parametrisation == "exp" else strength
    return delta_BTG.transpose(1, 2).contiguous()
