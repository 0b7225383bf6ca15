"""The backward for Hopper (hopper_backward_dq.cu, hopper_backward_dkdv.cu): variants and launches.

hopper.py says where it serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from dmabench.kernels import nvrtc
from dmabench.kernels.dma_cuda import hopper, launch

_THREADS = 384
_Q_TILE = 64
_WARPGROUPS = 2


@dataclass(frozen=True)
class DqVariant:
    """How hopper_backward_dq.cu is compiled and launched."""

    heads: int
    """Query heads of a block, which share what it gathers: 1 or 2."""
    k_stages: int
    v_stages: int
    """Steps whose rows of K and of V shared memory holds. A step needs its K for longer than its V."""
    keys: int = 64
    """Keys of a step."""

    def defines(self, head_dim: int, dtype: torch.dtype, gathers: bool) -> dict[str, int]:
        return launch.defines(head_dim, dtype, gathers) | {
            "KEYS_OF_STEP": self.keys,
            "HEADS": self.heads,
            "K_STAGES": self.k_stages,
            "V_STAGES": self.v_stages,
        }

    def shared_bytes(self, head_dim: int) -> int:
        """Dynamic shared memory, as struct Shared of hopper_block.cuh lays it out."""
        row, rows, stages = 2 * head_dim, _WARPGROUPS * self.heads * _Q_TILE, self.k_stages + self.v_stages
        slots = self.k_stages + 1
        return 2 * rows * row + stages * self.keys * row + slots * (self.keys * 12 + 4) + 2 * stages * 8 + 2 * rows * 4


def dq_variant(head_dim: int, groups: int) -> DqVariant:
    """The variant for `groups` query heads a key/value head: what fits; none has been timed."""
    if groups % 2 == 0:
        return DqVariant(2, 3, 2) if head_dim == 128 else DqVariant(2, 6, 4)
    return DqVariant(1, 4, 4)


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
    chosen: DqVariant | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as launch.backward_dq, which says what the arguments and results are."""
    chosen = chosen or dq_variant(q.shape[3], q.shape[1] // k.shape[1])
    dq, rowsum = q.new_empty(q.shape), relative_lse.new_empty(relative_lse.shape)
    rows = q.shape[0] * q.shape[1] // chosen.heads
    tasks = rows * -(-q.shape[2] // launch.BLOCK_Q)
    if not tasks:
        return dq, rowsum
    defines = chosen.defines(q.shape[3], q.dtype, len(visits) == 3)
    kernel = nvrtc.kernel(launch.FOLDER / "hopper_backward_dq.cu", "dma_hopper_backward_dq", defines)
    lists = (*visits, *launch.NOTHING[len(visits) :])
    pointers = (q, k, v, dout, delta, evict, origins, *lists, out, relative_lse, rowsum, dq)
    sizes = (*launch.sizes_of(q, k), numpy.int32(visits[0].shape[-1]), numpy.int32(rows))
    blocks = min(tasks, hopper.multiprocessors(q.device))
    shared = chosen.shared_bytes(q.shape[3])
    launch.start(kernel, blocks, _THREADS, shared, pointers, (q, k, v, dout), sizes, scale)
    return dq, rowsum


PAIR = 2 * launch.TILE
"""Keys of a block of hopper_backward_dkdv.cu."""
STAGES = 4
"""Steps whose queries shared memory holds in hopper_backward_dkdv.cu; not tuned yet."""


def dkdv_defines(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """How hopper_backward_dkdv.cu is compiled."""
    return launch.defines(head_dim, dtype, False) | {"STAGES": STAGES}


def dkdv_shared_bytes(head_dim: int) -> int:
    """Dynamic shared memory, as struct Shared of hopper_backward_dkdv.cu lays it out."""
    tile = 2 * head_dim * launch.TILE
    tiles = 2 * _WARPGROUPS + 2 * STAGES
    return tiles * tile + 2 * STAGES * 8 + STAGES * (2 * launch.TILE + 1) * 4 + _WARPGROUPS * launch.TILE * 4


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
    """The same as launch.backward_dkdv, but `tiles` end with the Tiles.step_ends of tiles of PAIR keys."""
    dk, dv, ddelta = k.new_empty(k.shape), v.new_empty(v.shape), delta.new_empty(delta.shape)
    order, *ranges, ends = tiles
    blocks = hopper.multiprocessors(q.device) if ends.numel() else 0
    if not blocks:
        return dk, dv, ddelta
    parts = relative_lse.new_empty((2 * blocks, q.shape[3] // 4 + 1, _WARPGROUPS * 128, 4))
    sizes = (*launch.sizes_of(q, k), numpy.int32(delta.shape[:2].numel()))
    source, defines = launch.FOLDER / "hopper_backward_dkdv.cu", dkdv_defines(q.shape[3], q.dtype)
    pointers = (q, k, v, dout, delta, evict, order, *ranges, ends, origins, relative_lse, rowsum, parts, dk, dv, ddelta)
    kernel = nvrtc.kernel(source, "dma_hopper_backward_dkdv", defines)
    launch.start(kernel, blocks, _THREADS, dkdv_shared_bytes(q.shape[3]), pointers, (q, k, v, dout), sizes, scale)
    join = nvrtc.kernel(source, "dma_hopper_backward_join", defines)
    launch.start(join, blocks, _WARPGROUPS * 128, 0, (order, ends, parts, dk, dv, ddelta), (), sizes, scale)
    return dk, dv, ddelta
