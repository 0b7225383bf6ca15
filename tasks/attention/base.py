"""What the attentions share: their interface to the model, Qwen3's projections, dense attention."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from dmabench.tasks.cache import State
from dmabench.tasks.config import ModelConfig
from dmabench.tasks.padding import Padding

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""torch tries cuDNN last; on an H100 it is the fastest (torch 2.11, 1.6 to 1.9 times FlashAttention-2)."""

Rotary = dict[int, tuple[Tensor, Tensor]]
"""cos and sin [B or 1, T, dim] for each number of rotary dims in use; empty where there are no positions."""


@dataclass(frozen=True)
class Step:
    """What an attention knows of its input beside the hidden states."""

    rotary: Rotary
    state: Any = None
    """What the attention's `new_state` made, to read and to write; None where nothing is cached."""
    padding: Padding | None = None
    """In the first call of a cache alone: inputs are in compact places, states are kept by slot."""
    mask_BT: Tensor | None = None
    """bool, by slot, over all tokens so far; None where nothing is padded."""


class RMSNorm(Qwen3RMSNorm):
    """Qwen3's, but one kernel on a GPU, and in float64 for float64 inputs, where Qwen3 rounds to float32."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Any shape [..., size]; half precision with a float32 weight gives float32."""
        x = hidden_states.to(torch.promote_types(hidden_states.dtype, self.weight.dtype))
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


class GroupedAttention(nn.Module):
    """Qwen3's attention up to the attention itself: projections, a norm on query and key heads, rotary positions.

    Subclasses say what is attended to, in `first`, `further` and `new_state`. Inputs and outputs are [B, T, C].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        width, H, G, D = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(width, H * D, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, G * D, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, G * D, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * D, width, bias=config.attention_bias)
        self.q_norm = RMSNorm(D, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(D, eps=config.rms_norm_eps)

    @staticmethod
    def rotary_dims(config: ModelConfig) -> int:
        """How many rotary dims it asks the model for."""
        return config.head_dim

    def new_state(self, full: bool) -> State:
        """An empty state; `full` asks for one that keeps every key."""
        raise NotImplementedError

    def first(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        """Attention of a whole sequence (in compact places), which it writes to the state if there is one."""
        raise NotImplementedError

    def further(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        """Attention of new tokens to themselves and to what the state holds."""
        raise NotImplementedError

    def forward(self, x_BTC: Tensor, step: Step) -> Tensor:
        """Hidden states [B, T, C], after the layer's first norm, to what is added to the residual stream."""
        q, k, v = (
            project(x_BTC).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q, k = rotate(q, k, step.rotary)
        # Under autocast a norm's float32 weight makes float32 of half-precision heads.
        q, k = q.to(v.dtype), k.to(v.dtype)
        attend = self.further if step.state is not None and step.state.seen else self.first
        return self.o_proj(attend(q, k, v, step, x_BTC).transpose(1, 2).flatten(2))


def uncompiled_on_cuda(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`attend(q, ...)`, which torch.compile leaves alone where q is on CUDA: choosing a kernel there is host code
    (is a package installed, does it take these shapes) that it cannot trace, and the kernel is fused already."""
    island = torch.compiler.disable(attend)

    @functools.wraps(attend)
    def call(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (island if q.is_cuda else attend)(q, *args, **kwargs)

    return call


def rotate(q: Tensor, k: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """q and k [B, heads, T, dim] with rotary positions applied, where there are any."""
    if not rotary:
        return q, k
    cos, sin = rotary[q.shape[-1]]
    if q.dtype != cos.dtype or k.dtype != cos.dtype:
        return apply_rotary_pos_emb(q, k, cos, sin)
    cos, sin = cos[:, None], sin[:, None]
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


class _Rotation(torch.autograd.Function):
    """x cos + rotated x sin, where rotated swaps the halves of dims and negates the first: half the memory that
    transformers' apply_rotary_pos_emb moves, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (dout,), (cos, sin) = grads, ctx.saved_tensors
        half = dout.shape[-1] // 2
        dx = dout * cos
        dx[..., half:].addcmul_(dout[..., :half], sin[..., :half], value=-1)
        dx[..., :half].addcmul_(dout[..., half:], sin[..., half:])
        return dx, None, None


def by_slot(step: Step, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors [B, G, T, ...] from compact places to slots."""
    if step.padding is None:
        return tensors
    return tuple(step.padding.slots(x, 2) for x in tensors)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dense attention of q [B, H, Tq, D], the last of the keys' positions, to k and v [B, G, Tk, D].

    Args:
        mask: bool [B or 1, 1, Tq, Tk], True for keys to attend to, instead of causality.
    """
    Tq, Tk = q.shape[2], k.shape[2]
    if mask is None and Tq not in (1, Tk):
        mask = live_pairs(Tq, Tk, q.device)
    causal = mask is None and Tq > 1
    grouped = q.shape[1] != k.shape[1]
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    with sdpa_kernel(FASTEST_FIRST, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def live_pairs(Tq: int, Tk: int, device: torch.device, mask_BT: Tensor | None = None, window: int = 0) -> Tensor:
    """bool [B or 1, 1, Tq, Tk]: 0 <= i - j (< window, if that is not 0) for real keys j, with the queries i last."""
    j = torch.arange(Tk, device=device)
    distance = j[Tk - Tq :, None] - j
    live = (distance >= 0)[None, None]
    if window:
        live = live & (distance < window)
    return live if mask_BT is None else live & mask_BT[:, None, None, :]
