"""The kernels as PyTorch operators: torch.compile, graph capture and autograd see them.

`torch.ops.dmabench.dma_triton_forward` and `_backward` take plain tensors. The plan's lists are per key/value head:
keys, full, count where keys are gathered (see key_lists.py); first, last, full_first, full_last are the ranges of the
plan's tiles of 64 keys, and order the keys' order (see plan.py). The backward needs order and tiles always, the forward
the tiles where it does not gather; `ends` is Tiles.step_ends, where programs share the gradients of keys evenly. Scores
are computed relative to `references` (see Plan.references).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from dmabench.kernels.dma_triton.backward_keys import backward_keys_kernel, join_kernel
from dmabench.kernels.dma_triton.backward_queries import backward_queries_kernel
from dmabench.kernels.dma_triton.configs import Configs, block_d, for_call
from dmabench.kernels.dma_triton.forward import forward_kernel
from dmabench.kernels.dma_triton.tuned import Config
from dmabench.kernels.key_lists import BLOCK_Q
from dmabench.kernels.operators import operator
from dmabench.kernels.triton_launcher import Launcher

LOG2E = 1.4426950408889634
launch_forward = Launcher(forward_kernel)
launch_backward_queries = Launcher(backward_queries_kernel)
launch_backward_keys = Launcher(backward_keys_kernel)
launch_join = Launcher(join_kernel)


def _configs(q: Tensor, k: Tensor) -> Configs:
    return for_call(q.shape[-1], q.dtype, q.device, q.shape[1] // k.shape[1])


def _rows_contiguous(x: Tensor) -> Tensor:
    """The kernels take any strides but those of the last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_like(x: Tensor) -> Tensor:
    """In the layout of `x` where its rows are contiguous: [B, T, H, D] seen as [B, H, T, D] stays so."""
    return torch.empty_like(x, memory_format=torch.preserve_format if x.stride(-1) == 1 else torch.contiguous_format)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _query_programs(q: Tensor, config: Config) -> int:
    return q.shape[0] * q.shape[1] // config.heads * -(-q.shape[2] // BLOCK_Q) * (BLOCK_Q // config.block_m)


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """Key/value heads, query heads for each, queries, keys."""
    return k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2]


def _named(q: Tensor, config: Config) -> dict[str, Any]:
    """Constants and options of a kernel."""
    return {"HEAD_DIM": q.shape[3], "BLOCK_D": block_d(q.shape[3]), **config.options()}


def _named_by_query(q: Tensor, config: Config, gathers: bool) -> dict[str, Any]:
    """Of the two kernels that read keys for a block of queries."""
    return {"GATHERS": gathers, "AHEAD": gathers and config.ahead, "HEADS": config.heads, **_named(q, config)}


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    references: Tensor,
    keys: Tensor | None,
    full: Tensor | None,
    count: Tensor | None,
    order: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    full_first: Tensor | None,
    full_last: Tensor | None,
    ends: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out in q's dtype and layout; lse, and lse relative to `references`, float32 [B, H, Tq]."""
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    out, lse, relative_lse = _empty_forward(q)
    config, _ = _configs(q, k).by_query(keys is not None)
    with torch.cuda.device_of(q):
        launch_forward(
            _query_programs(q, config),
            (q, k, v, delta.contiguous(), evict, references, keys, full, count, first, last, full_first, full_last,
             out, lse, relative_lse),
            (*_strides(q, k, v, out), *_sizes(q, k), 0 if keys is None else keys.shape[3], scale * LOG2E),
            (config, q.dtype, q.shape[3], keys is None, first is None),
            lambda: _named_by_query(q, config, keys is not None),
        )  # fmt: skip
    return out, lse, relative_lse


def _empty_forward(q: Tensor, *_) -> tuple[Tensor, Tensor, Tensor]:
    lse, relative_lse = (torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) for _ in range(2))
    return _empty_like(q), lse, relative_lse


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    references: Tensor,
    keys: Tensor | None,
    full: Tensor | None,
    count: Tensor | None,
    order: Tensor,
    first: Tensor,
    last: Tensor,
    full_first: Tensor,
    full_last: Tensor,
    ends: Tensor | None,
    out: Tensor,
    relative_lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtype and layout of q, k, v, and ddelta float32 [B, G, Tk]."""
    dout, q, k, v = (_rows_contiguous(x) for x in (dout, q, k, v))
    delta = delta.contiguous()
    dq, dk, dv = (_empty_like(x) for x in (q, k, v))
    ddelta = torch.empty(delta.shape, dtype=torch.float32, device=q.device)
    B, H, Tq = q.shape[:3]
    # For the second kernel, with whole blocks of rows.
    row_sums, lses_log2 = torch.empty((2, B, H, -(-Tq // BLOCK_Q) * BLOCK_Q), dtype=torch.float32, device=q.device)
    configs = _configs(q, k)
    _, queries = configs.by_query(keys is not None)
    with torch.cuda.device_of(q):
        launch_backward_queries(
            _query_programs(q, queries),
            (q, k, v, delta, evict, references, keys, full, count, first, last, full_first, full_last, out,
             relative_lse, dout, dq, row_sums, lses_log2),
            (*_strides(q, k, v, out, dout, dq), *_sizes(q, k), 0 if keys is None else keys.shape[3], scale,
             scale * LOG2E),
            (queries, q.dtype, q.shape[3], keys is None),
            lambda: _named_by_query(q, queries, keys is not None),
        )  # fmt: skip
        _launch_keys(
            configs.keys, q, k, v, delta, evict, references, order, first, last, full_first, full_last, ends, lses_log2,
            row_sums, dout, dk, dv, ddelta, scale,
        )  # fmt: skip
    return dq, dk, dv, ddelta


def _launch_keys(config: Config, q, k, v, delta, evict, references, order, first, last, full_first, full_last, ends,
                 lses_log2, row_sums, dout, dk, dv, ddelta, scale: float) -> None:  # fmt: skip
    """The gradients of keys, values and delta: a tile a program; or shared evenly, and those of shared tiles joined."""
    tiles = k.shape[0] * k.shape[1] * -(-k.shape[2] // config.block_n)
    programs, parts = tiles, None
    # Those of a forward that another configuration served would be of other tiles.
    even = config.even and ends is not None and ends.numel() == tiles
    if even:
        programs = min(tiles, programs_at_once(q.device, config.warps))
        floats = config.block_n * (2 * block_d(q.shape[3]) + 1)
        parts = torch.empty((2 * programs, floats), dtype=torch.float32, device=q.device)
    ends = ends if even else None
    launch_backward_keys(
        programs,
        (q, k, v, delta, evict, references, order, first, last, full_first, full_last, ends, lses_log2, row_sums, dout,
         dk, dv, ddelta, parts),
        (*_strides(q, k, v, dout, dk, dv), *_sizes(q, k), tiles, scale, scale * LOG2E),
        (config, q.dtype, q.shape[3], even),
        lambda: {**_named(q, config), "EVEN": even},
    )  # fmt: skip
    if even:
        launch_join(
            programs,
            (order, ends, parts, dk, dv, ddelta),
            (*_strides(dk, dv), k.shape[1], k.shape[2], tiles, scale),
            (config, q.dtype, q.shape[3]),
            lambda: {"HEAD_DIM": q.shape[3], "BLOCK_D": block_d(q.shape[3]), "BLOCK_N": config.block_n, "num_warps": 8},
        )


@cache
def programs_at_once(device: torch.device, warps: int) -> int:
    """How many programs of the gradients of keys a GPU holds, whose threads take all registers they may; an even share
    of less is of no use. Interpreted: a few, so that tiles are shared."""
    if device.type == "cpu":
        return 5
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, 8 // warps)


def _empty_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, *_) -> tuple[Tensor, ...]:
    return _empty_like(q), _empty_like(k), _empty_like(v), torch.empty_like(delta).contiguous()


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    out, _, relative_lse = output
    ctx.save_for_backward(*tensors, out, relative_lse)


def _differentiate(ctx, dout: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grads = backward(dout, *ctx.saved_tensors, ctx.scale)
    return *grads, *(None,) * 12


forward = operator("dma_triton_forward", _forward, _empty_forward, setup=_setup_context, gradients=_differentiate)
backward = operator("dma_triton_backward", _backward, _empty_backward)
