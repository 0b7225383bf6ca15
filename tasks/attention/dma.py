"""Dynamic mask attention (arXiv 2508.02124): the `window` most important keys, as the values of the keys decide.

Fields of the config that begin with `dma_` change parts of it, so that each part can be judged by what is lost.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dmabench.kernels import dynamic_mask_attention, importance, make_plan
from dmabench.kernels.live_keys import LiveKeys
from dmabench.kernels.plan import Plan
from dmabench.tasks.attention.base import GroupedAttention, Step, by_slot
from dmabench.tasks.cache import Growing, State
from dmabench.tasks.config import ModelConfig

GATE_STD = 0.02
"""A starts as N(0, 0.02): with A = 0 every key is equally important, and W_dt has no gradient."""


class DynamicMaskAttention(GroupedAttention):
    """Remembers the live keys, at most `window` a head, or all of them where the cache must be able to go back, where
    there is no mask, and where the bias that live keys are kept with is not the one they are attended to with."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        G, D = config.num_key_value_heads, config.head_dim
        columns = 1 if config.dma_shared else G
        self.W_dt: nn.Parameter | None = None
        self.A: nn.Parameter | None = None
        if config.dma_importance in ("v", "k", "random"):
            trained = config.dma_bias and config.dma_importance != "random"
            self.W_dt = nn.Parameter(torch.empty(G * D, columns), requires_grad=trained)
            self.A = nn.Parameter(torch.empty(columns), requires_grad=trained)
        self.finite: Tensor | None = None
        """bool on the device, of any shape: all hold if every key's importance was finite in the last call that was not
        decoding. `require_finite_importance` of the model reads it."""
        self.watch: Callable[[Tensor, Plan], None] | None = None
        """Told of importance [B, G, T] and plan of each call that is not decoding."""

    def new_state(self, full: bool) -> State:
        bounded = self.config.dma_mask and self.config.dma_bias and not full
        return LiveKeys(self.config.window) if bounded else Growing()

    def delta(self, v_BGTD: Tensor, x_BTC: Tensor, first_B1: Tensor | int = 0) -> Tensor:
        """Importance of each key, float32 [B, G, T] (float64 with float64 values).

        Args:
            x_BTC: hidden states that the values were made from.
            first_B1: position of the first key, or [B, 1] of each row's.
        """
        config = self.config
        B, G, T, _ = v_BGTD.shape
        if self.W_dt is None or self.A is None:
            dtype = torch.float64 if v_BGTD.dtype == torch.float64 else torch.float32
            if config.dma_importance == "constant":
                return torch.zeros(B, G, T, dtype=dtype, device=v_BGTD.device)
            heads = torch.arange(1, G + 1, device=v_BGTD.device, dtype=dtype)
            slopes = torch.full_like(heads, 2.0 ** (-8 / G)) if config.dma_shared else 2.0 ** (-8 * heads / G)
            position_BT = first_B1 + torch.arange(T, device=v_BGTD.device)[None]
            return (slopes[:, None] * position_BT[:, None].to(dtype)).expand(B, G, T).contiguous()
        source = self._keys(x_BTC, v_BGTD) if config.dma_importance == "k" else v_BGTD
        if config.dma_importance == "random":
            source = source.detach()
        weight: Tensor = self.W_dt
        gate: Tensor = self.A
        if config.dma_shared:
            weight, gate = weight.expand(-1, G).contiguous(), gate.expand(G).contiguous()
        delta = importance(source, weight, gate, config.dma_parametrisation)
        # Heads that share importance share it to the last bit, or ties between them would break differently.
        return delta[:, :1].expand(-1, G, -1).contiguous() if config.dma_shared else delta

    def _keys(self, x_BTC: Tensor, v_BGTD: Tensor) -> Tensor:
        """Normed keys without positions, [B, G, T, D]: importance would move with the key otherwise."""
        with torch.autocast(v_BGTD.device.type, enabled=False):
            k = self.k_proj(x_BTC.to(self.k_proj.weight.dtype)).unflatten(-1, (-1, self.head_dim))
            return self.k_norm(k).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, plan: Plan) -> Tensor:
        bias = delta if self.config.dma_bias else torch.zeros_like(delta)
        out = dynamic_mask_attention(q, k, v, bias, plan.window, plan=plan, backend=self.config.dma_backend)
        assert isinstance(out, Tensor)  # a pair only where lse is asked for
        return out

    @torch.compiler.disable  # making a plan is host code that torch.compile would trace to no gain
    def first(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        with torch.autocast(v.device.type, enabled=False):  # autocast would round what backends keep in float32
            delta = self.delta(v, x)
            plan = make_plan(delta, self.config.window if self.config.dma_mask else delta.shape[-1])
            self.finite = plan.finite_parts
            if self.watch is not None:
                self.watch(delta, plan)
            out = self._attend(q, k, v, delta, plan)
            if step.padding is not None and step.state is not None:
                k, v, delta = by_slot(step, k, v, delta)
                if isinstance(step.state, LiveKeys):
                    step.state.prefill(k, v, delta, key_mask=step.padding.mask_BT)
                else:
                    step.state.append(k, v, delta)
            elif isinstance(step.state, LiveKeys):
                step.state.prefill(k, v, delta, plan=plan)
            elif step.state is not None:
                step.state.append(k, v, delta)
        return out

    @torch.compiler.disable
    def further(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        seen = step.state.seen
        with torch.autocast(v.device.type, enabled=False):
            first = seen if step.mask_BT is None else seen - (~step.mask_BT).sum(-1, keepdim=True)
            delta = self.delta(v, x, first)
            if isinstance(step.state, LiveKeys):
                return step.state.extend(q, k, v, delta, backend=self.config.dma_backend)
            k, v, delta = step.state.append(k, v, delta)
            window = self.config.window if self.config.dma_mask else delta.shape[-1]
            return self._attend(q, k, v, delta, make_plan(delta, window, key_mask=step.mask_BT, query_len=q.shape[2]))
