"""The decoding cache of dynamic mask attention.

cache.py        LiveKeys and decode_step
slots.py        its memory
operations.py   insertion and attention in tensor operations
step.py         one decoding step in two Triton kernels
checks.py       what is refused
"""

from dmabench.kernels.live_keys.cache import LiveKeys, decode_step

__all__ = ["LiveKeys", "decode_step"]
