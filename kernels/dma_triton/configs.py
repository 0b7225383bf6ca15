"""Block sizes by head dimension, dtype and shared memory. All that tuning changes is in this file.

They were chosen so that no inner loop spills registers on sm_90 (triton 3.6 and 3.9, compiled without a GPU);
tests/kernels/test_dma_triton_compile.py compiles them and reads what they take.
"""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled. BLOCK_M divides 128, BLOCK_N divides 64."""

    block_m: int
    """Query rows at a time."""
    block_n: int
    """Keys at a time."""
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch. Triton 3.10 will not fuse multiply and add unless it is asked to."""
        blocks = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}
        return blocks | {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Configs:
    forward: Config
    queries: Config
    """The gradient of the queries."""
    keys: Config
    """The gradients of keys, values and delta."""


HOPPER, AMPERE, CONSUMER = 227 << 10, 163 << 10, 99 << 10
"""Bytes of shared memory that a block may take: H100 and B200, A100, and cards without HBM."""

# By head dimension, rounded up to a power of two.
_HALF = {
    16: Configs(Config(128, 64, 4, 3), Config(128, 64, 8, 3), Config(64, 64, 4, 2)),
    32: Configs(Config(128, 64, 4, 3), Config(128, 64, 8, 3), Config(64, 64, 4, 2)),
    64: Configs(Config(128, 64, 4, 3), Config(128, 64, 8, 3), Config(64, 64, 4, 2)),
    128: Configs(Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 64, 4, 2)),
    256: Configs(Config(128, 32, 8, 2), Config(128, 32, 8, 2), Config(32, 64, 8, 2)),
}
_HALF_AMPERE = _HALF | {256: Configs(Config(128, 32, 8, 2), Config(64, 32, 4, 2), Config(32, 64, 8, 2))}
_HALF_CONSUMER = _HALF | {
    128: Configs(Config(128, 32, 8, 2), Config(64, 32, 4, 2), Config(32, 64, 4, 2)),
    256: Configs(Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(16, 32, 4, 1)),
}
# fp32 does not use tensor cores. Each product is unrolled for a thread's share of the block, so that larger blocks than
# these spill by the thousand and take minutes to compile. The same on every device.
_FLOAT = {
    16: Configs(Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1)),
    32: Configs(Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1)),
    64: Configs(Config(64, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1)),
    128: Configs(Config(32, 32, 8, 1), Config(16, 32, 8, 1), Config(32, 16, 8, 1)),
    256: Configs(Config(16, 16, 8, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1)),
}


def block_d(head_dim: int) -> int:
    """The head dimension as the kernels see it: a power of two, at least 16 for the matrix instructions."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose(head_dim: int, dtype: torch.dtype, shared_memory: int) -> Configs:
    """The configurations for a device where a block may take `shared_memory` bytes."""
    if dtype.itemsize == 4:
        table = _FLOAT
    elif shared_memory >= HOPPER:
        table = _HALF
    else:
        table = _HALF_AMPERE if shared_memory >= AMPERE else _HALF_CONSUMER
    return table[block_d(head_dim)]


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory a block may take; on a CPU, where kernels are interpreted, there is no limit."""
    return HOPPER if device.type == "cpu" else torch.cuda.get_device_properties(device).shared_memory_per_block_optin
