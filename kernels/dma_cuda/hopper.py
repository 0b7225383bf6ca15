"""What serves Hopper, and the forward there (hopper_forward.cu): its variants and its launch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy
import torch
from torch import Tensor

from dmabench.kernels import nvrtc
from dmabench.kernels.dma_cuda import launch

SWITCH = "DMABENCH_HOPPER"
"""The environment variable that names the kernels of ON: "forward,dq,dkdv", or "none", read when this is imported."""
KERNELS = ("forward", "dq", "dkdv")
USUAL = "forward,dq,dkdv"
"""All are faster there than the plain path (results/LOG.md, 2026-12-01)."""
ON = frozenset(word for word in os.environ.get(SWITCH, USUAL).replace(" ", "").split(",") if word != "none")
"""Which of KERNELS serve Hopper, rather than the plain path. A plan's tiles are for one path of dkdv: this stays as
it is in a process."""


def misnamed() -> str | None:
    """What is wrong with the value of SWITCH, or None."""
    unknown = sorted(ON - set(KERNELS))
    return f"{SWITCH} names {unknown[0]!r}; choose from {', '.join(KERNELS)} and none" if unknown else None


_THREADS = 384
_Q_TILE = 64
_WARPGROUPS = 2


@dataclass(frozen=True)
class Variant:
    """How hopper_forward.cu is compiled and launched."""

    keys: int
    """Keys of a step: 64 or 128."""
    heads: int
    """Query heads of a block, which share what it gathers: 1 or 2."""
    stages: int
    """Steps whose keys shared memory holds."""

    def defines(self, head_dim: int, dtype: torch.dtype, gathers: bool) -> dict[str, int]:
        return launch.defines(head_dim, dtype, gathers) | {
            "KEYS_OF_STEP": self.keys,
            "HEADS": self.heads,
            "K_STAGES": self.stages,
            "V_STAGES": self.stages,
        }

    def shared_bytes(self, head_dim: int) -> int:
        """Dynamic shared memory, as struct Shared of hopper_block.cuh lays it out."""
        row, slots = 2 * head_dim, self.stages + 1
        queries = _WARPGROUPS * self.heads * _Q_TILE * row
        return queries + 2 * self.stages * self.keys * row + slots * (self.keys * 12 + 4) + 4 * self.stages * 8


def variant(head_dim: int, groups: int) -> Variant:
    """The variant for `groups` query heads a key/value head: the fastest of those timed on an H100 with torch 2.11 at a
    head dimension of 128, 64 and 128 being right for both (results/LOG.md, 2026-11-25)."""
    return Variant(64, 2, 4) if groups % 2 == 0 else Variant(128, 1, 3 if head_dim == 64 else 2)


def serves(kernel: str, device: torch.device) -> bool:
    """Whether this one of KERNELS serves calls on this device (`forward`, or those of hopper_backward.py); otherwise
    that of launch.py does."""
    return kernel in ON and _is_hopper(device)


@cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has: blocks of a kernel that has one on each."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    evict: Tensor,
    origins: Tensor,
    visits: Sequence[Tensor],
    scale: float,
    chosen: Variant | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as launch.forward, which says what the arguments and results are."""
    groups = q.shape[1] // k.shape[1]
    chosen = chosen or variant(q.shape[3], groups)
    q, k, v = map(launch.addressable, (q, k, v))
    out = q.new_empty(q.shape)
    lse, relative_lse = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    rows = q.shape[0] * q.shape[1] // chosen.heads
    tasks = rows * -(-q.shape[2] // launch.BLOCK_Q)
    if not tasks:
        return out, lse, relative_lse
    defines = chosen.defines(q.shape[3], q.dtype, len(visits) == 3)
    kernel = nvrtc.kernel(launch.FOLDER / "hopper_forward.cu", "dma_hopper_forward", defines)
    pointers = (
        q,
        k,
        v,
        delta.contiguous(),
        evict,
        origins,
        *visits,
        *launch.NOTHING[len(visits) :],
        out,
        lse,
        relative_lse,
    )
    sizes = (*launch.sizes_of(q, k), numpy.int32(visits[0].shape[-1]), numpy.int32(rows))
    blocks = min(tasks, multiprocessors(q.device))
    shared = chosen.shared_bytes(q.shape[3])
    launch.start(kernel, blocks, _THREADS, shared, pointers, (q, k, v), sizes, scale)
    return out, lse, relative_lse
