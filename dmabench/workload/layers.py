"""One attention layer, hidden states to output, for every attention: what surrounds the kernels in a model.

Pure functions of named weights. The width is heads x head dim for all of them; projections have no bias, and queries
and keys no norm, so that attentions differ in nothing but themselves. arXiv 2508.02124 (dma), 2405.04434 (mla),
2502.11089 (nsa).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmabench.kernels import importance
from dmabench.kernels.latent import LatentDims
from dmabench.workload.cells import Shape

Tensors = dict[str, Tensor]
BASE = 10000.0
"""Of the rotary frequencies."""

FLOAT32 = ("weight", "gate", "norm")
"""Weights that stay in float32 whatever the dtype of the layer."""


def weight_shapes(function: str, shape: Shape, dims: LatentDims) -> dict[str, tuple[int, ...]]:
    """Weights of a layer by name, matrices [out, in], but `weight` [G*D, G] and `gate` [G] of dma's importance."""
    H, G, D = shape.heads, shape.kv_heads, shape.head_dim
    width = H * D
    if function == "mla":
        return {
            "wq": (H * (dims.nope + dims.rope), width),
            "wkv": (dims.latent + dims.rope, width),
            "norm": (dims.latent,),
            "up": (H * (dims.nope + dims.value), dims.latent),
            "wo": (width, H * dims.value),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "wq": (H * D, width),
        "wk": (G * D, width),
        "wv": (G * D, width),
        "wo": (width, H * D),
    }
    if function == "dma":
        shapes |= {"weight": (G * D, G), "gate": (G,)}
    if function == "nsa":
        shapes["wg"] = (3 * H, width)
    return shapes


def rotary(positions: Tensor, dims: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, dims] of rotary embedding at int positions [T]."""
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, dims, 2, device=positions.device, dtype=precision) / dims
    angle = positions[:, None].to(precision) * BASE**-exponent
    angle = torch.cat([angle, angle], -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., T, dims], its halves as pairs."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def rotary_dims(function: str, dims: LatentDims) -> int:
    """How many dims of a head have positions."""
    return dims.rope if function == "mla" else dims.value


def project(
    function: str,
    weights: Tensors,
    hidden: Tensor,
    tables: tuple[Tensor, Tensor],
    dims: LatentDims,
    rows: Any = slice(None),
) -> Tensors:
    """What the kernel of `function` is called with, by name; for dma with the importance that the layer computes.

    Args:
        hidden: [B, T, C]; tables: cos and sin [T, rotary dims] for its positions.
        dims: sizes of mla; the others take their head dim from it.
        rows: which tokens ask, if not all: an index of their axis. All tokens are keys.
    """
    cos, sin = tables
    asking, q_tables = hidden[:, rows], (cos[rows], sin[rows])
    if function == "mla":
        return _project_latent(weights, hidden, asking, tables, q_tables, dims)
    D = dims.value
    q = rotate(_heads(asking, weights["wq"], D), *q_tables)
    k = rotate(_heads(hidden, weights["wk"], D), *tables)
    tensors = {"q": q, "k": k, "v": _heads(hidden, weights["wv"], D)}
    if function == "dma":
        tensors["delta"] = importance(tensors["v"], weights["weight"], weights["gate"])
    if function == "nsa":
        tensors["gates"] = _heads(asking, weights["wg"], 3).sigmoid()
    return tensors


def _project_latent(weights: Tensors, hidden: Tensor, asking: Tensor, k_tables, q_tables, dims: LatentDims) -> Tensors:
    q_nope, q_rope = _heads(asking, weights["wq"], dims.nope + dims.rope).split([dims.nope, dims.rope], -1)
    latent, k_rope = F.linear(hidden, weights["wkv"]).split([dims.latent, dims.rope], -1)
    latent = F.rms_norm(latent, (dims.latent,), weights["norm"].to(latent.dtype), 1e-6)
    up_k, up_v = weights["up"].unflatten(0, (-1, dims.nope + dims.value)).split([dims.nope, dims.value], 1)
    return {
        "q_nope": q_nope,
        "q_rope": rotate(q_rope, *q_tables),
        "latent": latent,
        "k_rope": rotate(k_rope, *k_tables),
        "up_k": up_k,
        "up_v": up_v,
    }


def output(weights: Tensors, out_BHTV: Tensor) -> Tensor:
    """[B, H, T, V] -> [B, T, C]."""
    return F.linear(out_BHTV.transpose(1, 2).flatten(2), weights["wo"])


def _heads(x_BTC: Tensor, weight: Tensor, size: int) -> Tensor:
    """[B, T, C] -> [B, heads, T, size]."""
    return F.linear(x_BTC, weight).unflatten(-1, (-1, size)).transpose(1, 2)
