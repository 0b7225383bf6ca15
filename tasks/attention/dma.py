"""Dynamic mask attention (arXiv 2508.02124): the `window` most important keys, as the values of the keys decide."""

import torch
from torch import Tensor, nn

from dmabench.kernels import dynamic_mask_attention, importance, make_plan
from dmabench.kernels.live_keys import LiveKeys
from dmabench.tasks.attention.base import GroupedAttention, Step, by_slot
from dmabench.tasks.cache import Growing, State
from dmabench.tasks.config import ModelConfig

GATE_STD = 0.02
"""A starts as N(0, 0.02): with A = 0 every key is equally important, and W_dt has no gradient."""


class DynamicMaskAttention(GroupedAttention):
    """Remembers the live keys, at most `window` a head, or all of them where the cache must be able to go back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        G, D = config.num_key_value_heads, config.head_dim
        self.W_dt = nn.Parameter(torch.empty(G * D, G))
        self.A = nn.Parameter(torch.empty(G))
        self.finite: Tensor | None = None
        """bool on the device, of any shape: all hold if every key's importance was finite in the last call that was not
        decoding. `require_finite_importance` of the model reads it."""

    def new_state(self, full: bool) -> State:
        return Growing() if full else LiveKeys(self.config.window)

    def delta(self, v_BGTD: Tensor) -> Tensor:
        """Importance of each key, float32 [B, G, T] (float64 with float64 values)."""
        return importance(v_BGTD, self.W_dt, self.A, self.config.dma_parametrisation)

    @torch.compiler.disable  # making a plan is host code that torch.compile would trace to no gain
    def first(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        window = self.config.window
        with torch.autocast(v.device.type, enabled=False):  # autocast would round what backends keep in float32
            delta = self.delta(v)
            plan = make_plan(delta, window)
            self.finite = plan.finite_parts
            out = dynamic_mask_attention(q, k, v, delta, window, plan=plan, backend=self.config.dma_backend)
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
        assert isinstance(out, Tensor)  # a pair only where lse is asked for
        return out

    @torch.compiler.disable
    def further(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        backend = self.config.dma_backend
        with torch.autocast(v.device.type, enabled=False):
            delta = self.delta(v)
            if isinstance(step.state, LiveKeys):
                return step.state.extend(q, k, v, delta, backend=backend)
            k, v, delta = step.state.append(k, v, delta)
            out = dynamic_mask_attention(q, k, v, delta, self.config.window, key_mask=step.mask_BT, backend=backend)
        assert isinstance(out, Tensor)
        return out
