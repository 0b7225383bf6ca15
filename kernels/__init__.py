"""Attention functions and their backends. Imports as ``dmabench.kernels``; knows no command line and no task."""

from dmabench.kernels.dma import dynamic_mask_attention
from dmabench.kernels.importance import importance
from dmabench.kernels.latent import latent_attention
from dmabench.kernels.live_keys import LiveKeys, decode_step
from dmabench.kernels.native_sparse import native_sparse_attention
from dmabench.kernels.plan import Plan, Tiles, make_plan
from dmabench.kernels.registry import Backend, Problem, Unsupported, backends

__all__ = [
    "Backend",
    "LiveKeys",
    "Plan",
    "Problem",
    "Tiles",
    "Unsupported",
    "backends",
    "decode_step",
    "dynamic_mask_attention",
    "importance",
    "latent_attention",
    "make_plan",
    "native_sparse_attention",
]
