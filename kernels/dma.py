"""The operator: one function, interchangeable backends."""

import logging
import math
from functools import lru_cache

import torch
from torch import Tensor

from dmabench.kernels import choice, registry
from dmabench.kernels.operators import traced
from dmabench.kernels.plan import Plan, make_plan
from dmabench.kernels.registry import Backend, Problem, Unsupported, wants_gradient

_log = logging.getLogger("dmabench.kernels")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def dynamic_mask_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    window: int,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    plan: Plan | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    check_finite: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to the `window` most important keys of each prefix (arXiv 2508.02124, Eq. 3-10, Listing 1).

    `o_i = softmax_j(q_i k_j * scale + delta_j) v_j` over the keys j <= i whose delta is among the `window` largest of
    delta[0..i]; of equal deltas the later position wins. Causality comes before the choice of keys. The choice is not
    differentiated; gradients reach q, k, v and delta, and are exactly zero for keys that nobody attends to.

    Args:
        q: [B, H, Tq, D], rotary positions applied; the queries are the last Tq of the Tk positions. Any strides.
        k, v: [B, G, Tk, D], H a multiple of G. fp32, fp16, bf16 (float64 with backend="reference").
        delta: importance [B, G, Tk], float32 whatever the dtype of q (`dmabench.kernels.importance` makes it).
        window: keys a query may attend to, >= 1.
        key_mask: optional bool [B, Tk]; False marks padding: never attended, never counted.
        scale: factor of q k^T, default 1/sqrt(D).
        plan: a plan made from the same delta, window and key mask, to be shared between calls or layers.
        backend: "auto" or the name of a DMA backend (`dmabench list backends`). "auto" takes what was the fastest where
            it was measured; the logger "dmabench.kernels" tells which and why, at level INFO.
        return_lse: also return the log of the softmax's denominator, [B, H, Tq] (not differentiable).
        check_finite: refuse a NaN or infinite delta by name (one synchronisation); without it NaN is never attended.

    Returns:
        out [B, H, Tq, D] in q's dtype, and lse if asked for. A row without a live key (a padded query) gives output 0,
        lse -inf and gradient 0.

    Raises:
        ValueError: shapes, dtypes or a window that do not fit, an unknown backend, a non-finite delta.
        Unsupported: the backend asked for cannot do this; the message says why.
    """
    backward = wants_gradient(q, k, v, delta)
    shapes, dtypes = (q.shape, k.shape, v.shape, delta.shape), (q.dtype, k.dtype, v.dtype, delta.dtype)
    choose = _choose_once if q.is_cuda and not traced() else _choose
    chosen = choose(backend, window, backward, shapes, dtypes, (q.device, k.device, v.device, delta.device))
    if plan is None:
        plan = make_plan(delta, window, key_mask=key_mask, query_len=q.shape[2])
    elif key_mask is not None:
        raise ValueError("key_mask belongs to the plan: give it to make_plan, or leave the plan out")
    elif (plan.window, plan.query_len, plan.evict_BGT.shape) != (window, q.shape[2], delta.shape):
        raise ValueError(
            f"the plan is for window {plan.window}, {plan.query_len} queries and delta {tuple(plan.evict_BGT.shape)}; "
            f"the call has window {window}, {q.shape[2]} queries and delta {tuple(delta.shape)}"
        )
    if check_finite:
        plan.require_finite()
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out, lse = chosen.attend(q, k, v, delta=delta, plan=plan, scale=scale)
    if not return_lse:
        return out
    if lse is None:
        raise Unsupported(f"{chosen.id} does not return lse on {q.device.type}; dma/reference does")
    return out, lse


def _choose(
    backend: str,
    window: int,
    backward: bool,
    shapes: tuple[torch.Size, ...],
    dtypes: tuple[torch.dtype, ...],
    devices: tuple[torch.device, ...],
) -> Backend:
    """The backend for q, k, v and delta of these shapes, dtypes and devices, or an error of dynamic_mask_attention."""
    q, k, v, delta = shapes
    _check_shapes(q, k, v)
    if dtypes[0] not in DTYPES or len(set(dtypes[:3])) > 1:
        raise ValueError(f"q, k, v must share one of {DTYPES}, got {', '.join(map(str, dtypes[:3]))}")
    wanted = (torch.float32, torch.float64) if dtypes[0] == torch.float64 else (torch.float32,)
    if delta != k[:3] or dtypes[3] not in wanted:
        raise ValueError(f"delta must be float32 {tuple(k[:3])}, got {dtypes[3]} {tuple(delta)}")
    if len(set(devices)) > 1:
        names = sorted(set(map(str, devices)))
        raise ValueError(f"q, k, v and delta are on different devices: {', '.join(names)}")
    (B, H, Tq, D), (_, G, Tk, _) = q, k
    problem = Problem(devices[0].type, dtypes[0], B, H, G, Tq, Tk, D, window, backward)
    chosen = registry.get(f"dma/{_fastest(problem, devices[0]) if backend == 'auto' else backend}")
    refusal = chosen.refusal(problem)
    if refusal:
        raise Unsupported(f"{chosen.id}: {refusal}")
    return chosen


_choose_once = lru_cache(maxsize=1024)(_choose)
"""For calls on a card, which come again and again: to check and choose anew takes the host longer than a launch."""


def _check_shapes(q: torch.Size, k: torch.Size, v: torch.Size) -> None:
    if len(q) != 4 or len(k) != 4 or k != v:
        raise ValueError(f"q must be [B, H, Tq, D] and k, v [B, G, Tk, D], got {tuple(q)}, {tuple(k)}, {tuple(v)}")
    (B, H, Tq, D), (_, G, Tk, _) = q, k
    if k[0] != B or k[3] != D:
        raise ValueError(f"q {tuple(q)} and k {tuple(k)} differ in batch or head dimension")
    if G == 0 or H % G:
        raise ValueError(f"{H} query heads cannot share {G} key/value heads evenly: H must be a multiple of G")
    if Tq > Tk:
        raise ValueError(f"{Tq} queries for {Tk} keys: the queries are the last of the keys' positions")


def _fastest(problem: Problem, device: torch.device | None = None) -> str:
    """What choice.py says of the problem on `device`. While a call is traced the table of measured times is not asked,
    since its lengths may be symbols then: the fixed order decides."""
    known = None if device is None or traced() else choice.device_class(device)
    found = choice.fastest(problem, known)
    if not traced() and _log.isEnabledFor(logging.INFO):
        _log.info("%s", choice.explain(found))
    return found.name
