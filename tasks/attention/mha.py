"""Dense causal attention: every key, through SDPA. The layer is Qwen3's."""

from torch import Tensor

from dmabench.tasks.attention.base import GroupedAttention, Step, by_slot, causal_attention, live_pairs
from dmabench.tasks.cache import Growing, State


class DenseAttention(GroupedAttention):
    """Remembers every key."""

    def new_state(self, full: bool) -> State:
        return Growing()

    def first(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        if step.state is not None:
            step.state.append(*by_slot(step, k, v))
        return causal_attention(q, k, v)

    def further(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        k, v = step.state.append(k, v)
        masked = step.mask_BT is not None
        return causal_attention(q, k, v, live_pairs(q.shape[2], k.shape[2], q.device, step.mask_BT) if masked else None)
