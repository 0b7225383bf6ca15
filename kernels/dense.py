"""Causal attention to every key: the baselines that a sparse attention has to beat.

Each SDPA backend is a row of its own, because torch's default choice is not the fastest (on Hopper cuDNN is). The
queries are as many as the keys, since SDPA's causal mask is aligned to the first key, or a single one, which decoding
asks: the last, which sees every key, so it needs no mask.
"""

from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmabench.kernels import flex, sliding_window
from dmabench.kernels.registry import Backend, Problem, Unsupported, needs_cuda, needs_half


def _sdpa(backend: SDPBackend):
    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        groups, causal = q.shape[1] // k.shape[1], q.shape[2] > 1
        with sdpa_kernel([backend]):
            try:
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=groups > 1)
            except RuntimeError as error:
                if any(words in str(error) for words in ("No available kernel", "No viable backend")):
                    raise Unsupported(
                        f"torch {torch.__version__} has no {backend.name} kernel for {q.dtype}, "
                        f"head dim {q.shape[-1]}, {q.shape[1]}/{k.shape[1]} heads here"
                    ) from error
                raise

    return attend


def _refuses_offset(problem: Problem) -> str | None:
    if problem.query_len not in (1, problem.key_len):
        return "SDPA aligns its causal mask to the first key: it needs as many queries as keys, or one"
    return None


def _refuses_flash(problem: Problem) -> str | None:
    on_cuda = problem.device == "cuda"  # the CPU's has every dtype
    return (needs_half(problem, "FlashAttention") if on_cuda else None) or _refuses_offset(problem)


def _refuses_cudnn(problem: Problem) -> str | None:
    return needs_half(problem, "cuDNN attention") or _refuses_offset(problem)


def _math_workspace(problem: Problem) -> int:
    # Scores and probabilities, with half precision computed in float32; counted on the CPU: 2 x 4 bytes at the peak.
    bytes_each = max(4, torch.finfo(problem.dtype).bits // 8)
    return 2 * bytes_each * problem.batch * problem.heads * problem.query_len * problem.key_len


def _flex_attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return sliding_window.flex_attend(q, k, v, window=k.shape[2], scale=scale)


def _flash_package(module: str):
    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        call = import_module(module).flash_attn_func
        out = call(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, causal=True)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend


def _needs_package(module: str, what: str):
    def missing(device: str) -> str | None:
        if device != "cuda":
            return needs_cuda(what)(device)
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        return None if found else f"{what} is not installed (module {module})"

    return missing


_SDPA_PASSES = ("fwd", "bwd", "fwd+bwd", "decode")

BACKENDS = [
    Backend("dense", "sdpa-flash", _sdpa(SDPBackend.FLASH_ATTENTION), _SDPA_PASSES, refuses=_refuses_flash),
    Backend(
        "dense",
        "sdpa-cudnn",
        _sdpa(SDPBackend.CUDNN_ATTENTION),
        _SDPA_PASSES,
        missing=needs_cuda("cuDNN attention"),
        refuses=_refuses_cudnn,
    ),
    Backend(
        "dense",
        "sdpa-math",
        _sdpa(SDPBackend.MATH),
        _SDPA_PASSES,
        refuses=_refuses_offset,
        workspace=_math_workspace,
    ),
    Backend("dense", "flex", _flex_attend, missing=flex.missing, refuses=sliding_window.refuses_flex),
    Backend(
        "dense",
        "fa3",
        _flash_package("flash_attn_interface"),
        missing=_needs_package("flash_attn_interface", "FlashAttention-3"),
        refuses=_refuses_flash,
    ),
    Backend(
        "dense",
        "fa4",
        _flash_package("flash_attn.cute"),
        missing=_needs_package("flash_attn.cute", "FlashAttention-4"),
        refuses=_refuses_flash,
    ),
]
