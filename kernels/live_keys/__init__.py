"""The decoding cache of dynamic mask attention.

cache.py        LiveKeys and decode_step
slots.py        its memory
operations.py   insertion and attention in tensor operations
step.py         one decoding step in two Triton kernels
checks.py       what is refused
"""

from torch import Tensor

from dmabench.kernels.live_keys.cache import LiveKeys, decode_step
from dmabench.kernels.plan import Plan
from dmabench.kernels.registry import Backend, Problem

__all__ = ["BACKENDS", "LiveKeys", "decode_step"]


def _attend(q: Tensor, k: Tensor, v: Tensor, *, delta: Tensor, plan: Plan, scale: float) -> tuple[Tensor, None]:
    """One query at the last position, through a cache made from all keys; a decoder keeps the cache instead."""
    cache = LiveKeys(plan.window)
    cache.prefill(k, v, delta, plan=plan)
    return cache.attend(q, scale), None


def _refuses(problem: Problem) -> str | None:
    if problem.query_len == 1:
        return None
    return "dma/live-keys takes one query, to decode; the other dma backends take whole sequences"


BACKENDS = [Backend("dma", "live-keys", _attend, passes=("decode",), refuses=_refuses)]
