"""Multi-head latent attention (MLA): keys and values of all heads are projections of one small latent a token.

arXiv 2405.04434, section 2.1. What is cached is the latent and one rotary key, both shared by all heads. Two ways to
compute the same thing: `expanded` makes every head's keys and values (training, prefill: the fewest operations, and
the kernels of dense attention); `absorbed` moves the two projections to the query's side and attends to the cache
itself (decoding: the fewest bytes, since nothing of size heads x keys x head dim exists).
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmabench.kernels.products import weighted_sum, wide_product
from dmabench.kernels.registry import Backend, Problem

BLOCK_ELEMENTS = 1 << 26
"""Scores that the absorbed form computes at once: 256 MiB in float32."""

_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class LatentDims:
    """Sizes of MLA beside batch, heads and lengths."""

    latent: int
    """L: numbers cached a token, from which all heads' keys and values are made."""
    nope: int
    """N: a head's query and key dims without position."""
    rope: int
    """R: rotary query dims a head; the rotary key of R dims is shared by all heads."""
    value: int
    """V: a head's value dims."""


def dims_for(problem: Problem) -> LatentDims:
    """The sizes that go with `heads` heads of `head_dim`: a latent of a quarter of the model's width, half a head for
    the rotary part. At 16 heads of 128 these are DeepSeek-V2's own 512, 128, 64, 128."""
    D = problem.head_dim
    return LatentDims(latent=problem.heads * D // 4, nope=D, rope=D // 2, value=D)


def latent_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    up_k: Tensor,
    up_v: Tensor,
    *,
    scale: float | None = None,
    absorbed: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Causal attention of H heads with k_h = [latent up_k_h^T, k_rope] and v_h = latent up_v_h^T.

    Args:
        q_nope, q_rope: [B, H, Tq, N] and [B, H, Tq, R], the queries at the last Tq of the Tk positions; rotary
            embedding applied to q_rope.
        latent: [B, Tk, L], normalised where the model normalises it; k_rope: [B, Tk, R], rotary embedding applied.
        up_k: [H, N, L]; up_v: [H, V, L].
        scale: of the scores; default 1 / sqrt(N + R).
        absorbed: attend to the cache itself; the same function, to rounding.
        key_mask: optional bool [B, Tk], False for padding; a query without a key gives 0.

    Returns:
        [B, H, Tq, V] in q's dtype.

    Raises:
        ValueError: shapes that do not fit, with the one that was expected.
    """
    _check(q_nope, q_rope, latent, k_rope, up_k, up_v, key_mask)
    scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5 if scale is None else scale
    form = _absorbed if absorbed else _expanded
    return form(q_nope, q_rope, latent, k_rope, up_k, up_v, scale, key_mask)


def _check(q_nope, q_rope, latent, k_rope, up_k, up_v, key_mask) -> None:
    B, H, Tq, N = q_nope.shape
    R, V = q_rope.shape[-1], up_v.shape[1]
    _, Tk, L = latent.shape
    expected = {
        "q_rope": (q_rope, (B, H, Tq, R)),
        "latent": (latent, (B, Tk, L)),
        "k_rope": (k_rope, (B, Tk, R)),
        "up_k": (up_k, (H, N, L)),
        "up_v": (up_v, (H, V, L)),
    }
    if key_mask is not None:
        expected["key_mask"] = (key_mask, (B, Tk))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} beside q_nope {tuple(q_nope.shape)}, got {tuple(tensor.shape)}")
    if Tq > Tk:
        raise ValueError(f"{Tq} queries but {Tk} keys: the queries are the last of the keys' positions")


def _expanded(q_nope, q_rope, latent, k_rope, up_k, up_v, scale, key_mask) -> Tensor:
    H = q_nope.shape[1]
    # One matrix product for all heads; the head axis stays inside a token, which every kernel here takes as strides.
    k_nope_BTHN = F.linear(latent, up_k.flatten(0, 1)).unflatten(-1, (H, -1))
    k = torch.cat([k_nope_BTHN, k_rope[:, :, None].expand(-1, -1, H, -1)], -1).transpose(1, 2)
    v = F.linear(latent, up_v.flatten(0, 1)).unflatten(-1, (H, -1)).transpose(1, 2)
    q = torch.cat([q_nope, q_rope], -1)
    Tq, Tk = q.shape[2], k.shape[2]
    if key_mask is None and Tq in (1, Tk):
        return _sdpa(q, k, v, None, Tq > 1, scale)
    live, empty = _live(slice(Tk - Tq, Tk), Tk, q.device, key_mask)  # SDPA's own mask is aligned to the first key
    return _sdpa(q, k, v, live, False, scale).masked_fill(empty, 0.0)


def _live(positions: slice, Tk: int, device: torch.device, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """bool [B or 1, 1, R, Tk], which keys the queries at R positions attend to, and bool [B or 1, 1, R, 1], which
    queries have none; those are given all keys, since a softmax over none is NaN, and its gradient too."""
    position = torch.arange(Tk, device=device)
    live = (position <= position[positions, None])[None, None]
    if key_mask is not None:
        live = live & key_mask[:, None, None, :]
    empty = ~live.any(-1, keepdim=True)
    return live | empty, empty


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """SDPA by the fastest kernel there is; v is padded where that kernel wants all head dims equal."""
    qk_dim, v_dim = q.shape[-1], v.shape[-1]
    equal = qk_dim == v_dim or mask is not None  # kernels that take a mask take any dims
    if not equal and not (q.is_cuda and _cudnn_takes(qk_dim, v_dim, q.dtype)):
        width = max(qk_dim, v_dim)  # zero columns change neither scores nor the columns kept
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    with sdpa_kernel(_ORDER, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)[..., :v_dim]


def _constant_when_compiled(function):
    """As torch.compiler.assume_constant_result, which would import all of dynamo first: 3 s for every worker."""
    function._dynamo_marked_constant = True
    return function


@cache
@_constant_when_compiled
def _cudnn_takes(qk_dim: int, v_dim: int, dtype: torch.dtype) -> bool:
    """Whether cuDNN attends with these dims on this card. torch.compile asks while it traces, and not in its graph."""
    q, v = (torch.empty(1, 2, 128, dim, dtype=dtype, device="cuda") for dim in (qk_dim, v_dim))
    params = torch.backends.cuda.SDPAParams(q, q, v, None, 0.0, True, False)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def _absorbed(q_nope, q_rope, latent, k_rope, up_k, up_v, scale, key_mask) -> Tensor:
    B, H, Tq, _ = q_nope.shape
    Tk = latent.shape[1]
    q_latent = torch.einsum("bhtn,hnl->bhtl", q_nope, up_k)
    rows_at_once = max(1, BLOCK_ELEMENTS // (B * H * Tk))
    parts = []
    for start in range(0, Tq, rows_at_once):
        count = min(rows_at_once, Tq - start)
        rows = slice(start, start + count)
        # All heads are rows of one product, since they share their keys.
        scores = wide_product(q_latent[:, :, rows].flatten(1, 2), latent)
        scores = scores + wide_product(q_rope[:, :, rows].flatten(1, 2), k_rope)
        scores = (scores * scale).unflatten(1, (H, count))
        masked = key_mask is not None or Tq > 1
        if masked:
            first = Tk - Tq + start
            live, empty = _live(slice(first, first + count), Tk, latent.device, key_mask)
            scores = scores.masked_fill(~live, -torch.inf)
        out = weighted_sum(scores.softmax(-1).flatten(1, 2), latent).to(latent.dtype).unflatten(1, (H, count))
        parts.append(out.masked_fill(empty, 0.0) if masked else out)
    return torch.einsum("bhtl,hvl->bhtv", torch.cat(parts, 2), up_v)


def _attend_expanded(q_nope, q_rope, latent, k_rope, up_k, up_v, *, scale=None) -> Tensor:
    return latent_attention(q_nope, q_rope, latent, k_rope, up_k, up_v, scale=scale)


def _attend_absorbed(q_nope, q_rope, latent, k_rope, up_k, up_v, *, scale=None) -> Tensor:
    return latent_attention(q_nope, q_rope, latent, k_rope, up_k, up_v, scale=scale, absorbed=True)


def example_inputs(problem: Problem, generator: torch.Generator, dims: LatentDims | None = None) -> dict[str, Tensor]:
    """Random tensors for `attend`, by argument name, in the order of its arguments; all of them have gradients.

    Args:
        generator: on the problem's device.
        dims: default `dims_for(problem)`. problem.kv_heads plays no part: MLA has one latent for all heads.

    Returns:
        q_nope [B, H, Tq, N], q_rope [B, H, Tq, R], latent [B, Tk, L], k_rope [B, Tk, R], up_k [H, N, L] and
        up_v [H, V, L] in the problem's dtype; up_k and up_v keep keys and values at unit variance.
    """
    dims = dims or dims_for(problem)
    B, H, Tq, Tk, L = problem.batch, problem.heads, problem.query_len, problem.key_len, dims.latent
    shapes = {
        "q_nope": (B, H, Tq, dims.nope),
        "q_rope": (B, H, Tq, dims.rope),
        "latent": (B, Tk, L),
        "k_rope": (B, Tk, dims.rope),
        "up_k": (H, dims.nope, L),
        "up_v": (H, dims.value, L),
    }
    drawn = {
        name: torch.randn(shape, generator=generator, device=problem.device, dtype=torch.float32)
        for name, shape in shapes.items()
    }
    return {name: (x * L**-0.5 if name.startswith("up_") else x).to(problem.dtype) for name, x in drawn.items()}


def cache_bytes(problem: Problem, dims: LatentDims | None = None) -> int:
    """Bytes of the decoding cache after key_len tokens: the latent and the rotary key, once for all heads."""
    dims = dims or dims_for(problem)
    return problem.batch * problem.key_len * (dims.latent + dims.rope) * torch.finfo(problem.dtype).bits // 8


BACKENDS = [
    Backend("mla", "expanded", _attend_expanded),
    Backend("mla", "absorbed", _attend_absorbed, passes=("fwd", "decode")),
]
