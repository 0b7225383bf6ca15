"""Calls of the three CUDA kernels: which variant, how many blocks, how much shared memory, which arguments."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Tensor

from dmabench.kernels import nvrtc

FOLDER = Path(__file__).parent
HEAD_DIMS = (64, 128)
BLOCK_Q, TILE = 128, 64
_THREADS = 128
ROWS = 64
"""Queries of a step of backward_dkdv."""
_KEYS = {"forward": 64, "backward_dq": 32}
_KEPT, _PART = 120, 28  # struct Kept of schedule.cuh, Part of backward_dkdv.cu


def defines(head_dim: int, dtype: torch.dtype, gathers: bool) -> dict[str, int]:
    """The variant of a kernel."""
    return {"HEAD_DIM": head_dim, "BF16": int(dtype == torch.bfloat16), "GATHERS": int(gathers)}


def shared_bytes(kernel: str, head_dim: int) -> int:
    """Dynamic shared memory of a kernel, as its source lays it out."""
    row = 2 * head_dim
    if kernel == "backward_join":
        return 2 * TILE * row + TILE * 4
    if kernel == "backward_dkdv":
        return 2 * TILE * row + 2 * (2 * TILE * row + 2 * TILE * 4 + 16) + TILE * 4 + _PART
    keys = _KEYS[kernel]
    buffers = 4 * keys * row + 7 * keys * 4 + _KEPT
    return BLOCK_Q * row + buffers if kernel == "forward" else 2 * BLOCK_Q * row + buffers + BLOCK_Q * 4


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    visits: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, contiguous [B, H, Tq, D] in q's dtype, lse [B, H, Tq] (float32, natural logarithm), and lse relative to the
    origins in units of log 2, which the backward takes.

    Args:
        q, k, v: [B, H, Tq, D] and [B, G, Tk, D], fp16 or bf16.
        delta, evict: float32 and int32 [B, G, Tk].
        origins: Plan.references.
        visits: keys, full and count of KeyLists, or first, last, full_first and full_last of tiles of 64 keys in the
            order of their positions.
    """
    q, k, v = map(addressable, (q, k, v))
    out = q.new_empty(q.shape)
    lse, relative_lse = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    _launch(
        "forward",
        q,
        len(visits) == 3,
        _query_blocks(q),
        (q, k, v, delta.contiguous(), evict, origins, *visits, *NOTHING[len(visits) :], out, lse, relative_lse),
        (q, k, v),
        (*sizes_of(q, k), numpy.int32(visits[0].shape[-1])),
        scale,
    )
    return out, lse, relative_lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    visits: Sequence[Tensor],
    tiles: Sequence[Tensor],
    out: Tensor,
    relative_lse: Tensor,
    dout: Tensor,
    scale: float,
    dq_with: Callable[..., tuple[Tensor, Tensor]] | None = None,
    dkdv_with: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv in q's dtype and ddelta (float32), contiguous. Keys that no query attends to get exact zeros.

    Args:
        tiles: the order of the keys; first, last, full_first and full_last of its tiles of 64; and their
            Tiles.step_ends.
        dq_with, dkdv_with: what takes the place of `backward_dq` and `backward_dkdv`.
    """
    q, k, v, dout = map(addressable, (q, k, v, dout))
    delta = delta.contiguous()
    dq, rowsum = (dq_with or backward_dq)(q, k, v, delta, evict, origins, visits, out, relative_lse, dout, scale)
    return dq, *(dkdv_with or backward_dkdv)(q, k, v, delta, evict, origins, tiles, relative_lse, rowsum, dout, scale)


def backward_dq(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    visits: Sequence[Tensor],
    out: Tensor,
    relative_lse: Tensor,
    dout: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """dq, and float32 [B, H, Tq]: the sums of dout * out over rows. Takes what `backward` takes, delta contiguous, and
    tensors with strides that kernels can read (`addressable`)."""
    dq, rowsum = q.new_empty(q.shape), relative_lse.new_empty(relative_lse.shape)
    _launch(
        "backward_dq",
        q,
        len(visits) == 3,
        _query_blocks(q),
        (q, k, v, dout, delta, evict, origins, *visits, *NOTHING[len(visits) :], out, relative_lse, rowsum, dq),
        (q, k, v, dout),
        (*sizes_of(q, k), numpy.int32(visits[0].shape[-1])),
        scale,
    )
    return dq, rowsum


def backward_dkdv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    tiles: Sequence[Tensor],
    relative_lse: Tensor,
    rowsum: Tensor,
    dout: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dk, dv and ddelta, from what `backward` takes and `backward_dq` returns."""
    dk, dv, ddelta = k.new_empty(k.shape), v.new_empty(v.shape), delta.new_empty(delta.shape)
    order, *ranges, ends = tiles
    blocks = min(_blocks_at_once(q.device), ends.numel())
    parts = relative_lse.new_empty((2 * blocks, q.shape[3] // 4 + 1, _THREADS, 4))
    sizes = (*sizes_of(q, k), numpy.int32(delta.shape[:2].numel()))
    _launch(
        "backward_dkdv",
        q,
        False,
        blocks,
        (q, k, v, dout, delta, evict, order, *ranges, ends, origins, relative_lse, rowsum, parts, dk, dv, ddelta),
        (q, k, v, dout),
        sizes,
        scale,
    )
    _launch("backward_join", q, False, blocks, (order, ends, parts, dk, dv, ddelta), (), sizes, scale)
    return dk, dv, ddelta


@cache
def _blocks_at_once(device: torch.device) -> int:
    """CTAs of backward_dkdv that a GPU holds: two a multiprocessor, by their registers and shared memory."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


NOTHING = (None,) * 4


def _launch(name: str, q: Tensor, gathers: bool, blocks: int, pointers, strided, sizes, scale: float) -> None:
    """Start the kernel `dma_<name>` of the plain path, unless it has nothing to do."""
    if not blocks:
        return
    source = "backward_dkdv" if name == "backward_join" else name
    kernel = nvrtc.kernel(FOLDER / f"{source}.cu", f"dma_{name}", defines(q.shape[3], q.dtype, gathers))
    start(kernel, blocks, _THREADS, shared_bytes(name, q.shape[3]), pointers, strided, sizes, scale)


def start(kernel, blocks: int, threads: int, shared: int, pointers, strided, sizes, scale: float) -> None:
    """Launch a kernel of this folder: pointers, strides of the tensors `strided`, sizes, and the scale for powers of 2
    come in this order in all of them."""
    strides = [integer for x in strided for integer in strides_of(x)]
    kernel.launch((blocks,), threads, shared, *pointers, *strides, *sizes, scale * math.log2(math.e))


def _query_blocks(q: Tensor) -> int:
    return q.shape[0] * q.shape[1] * -(-q.shape[2] // BLOCK_Q)


def sizes_of(q: Tensor, k: Tensor) -> tuple[numpy.int32, ...]:
    numbers = (k.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2])
    return tuple(map(numpy.int32, numbers))


def strides_of(x: Tensor) -> tuple[numpy.int64, numpy.int64, numpy.int32]:
    """Of batch, head and row, in bytes."""
    batch, head, row, _ = x.stride()
    return numpy.int64(batch * 2), numpy.int64(head * 2), numpy.int32(row * 2)


def addressable(x: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where the kernels cannot read it in place: they copy rows 16 bytes at a time."""
    batch, head, row, inner = x.stride()
    if inner == 1 and not (x.data_ptr() % 16 or batch % 8 or head % 8 or row % 8) and 0 <= row < 1 << 30:
        return x
    return x.clone(memory_format=torch.contiguous_format)
