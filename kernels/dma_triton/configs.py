"""How each kernel is compiled: block sizes, warps, stages. All that tuning changes is in this file.

A call takes, of the first that has one for its device: what `dmabench tune` measured here (the user's cache, tuned.py),
what was measured before on GPUs of its kind (MEASURED), the table by head dimension, dtype and shared memory. Nothing
is ever timed inside a call.

The table was chosen so that no inner loop spills registers on sm_90 (triton 3.6 and 3.9, compiled without a GPU);
tests/kernels/test_dma_triton_compile.py compiles it and reads what it takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton

from dmabench.kernels.dma_triton import tuned
from dmabench.kernels.dma_triton.tuned import Config, Key


@dataclass(frozen=True)
class Configs:
    """Of the three kernels, for one head dimension, dtype and device."""

    forward: Config
    queries: Config
    """The gradient of the queries."""
    keys: Config
    """The gradients of keys, values and delta."""
    in_order: tuple[Config, Config] | None = None
    """Of the forward and of the gradient of the queries where keys are not gathered by list, if not the same."""

    def by_query(self, gathers: bool) -> tuple[Config, Config]:
        """Of the forward and of the gradient of the queries."""
        return (self.forward, self.queries) if gathers or self.in_order is None else self.in_order


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


MEASURED: dict[tuple[int, int], dict[int, Configs]] = {
    (9, 0): {
        # An H200, triton 3.6.0: results/LOG.md, 2026-12-01.
        128: Configs(
            Config(128, 32, 4, 2, ahead=True),
            Config(64, 64, 4, 2, ahead=True),
            Config(32, 64, 4, 2, even=True),
        ),
    },
}
"""Winners of `dmabench tune` that are committed, by compute capability and block_d(head dimension): half precision,
keys gathered by list."""


def block_d(head_dim: int) -> int:
    """The head dimension as the kernels see it: a power of two, at least 16 for the matrix instructions."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose(head_dim: int, dtype: torch.dtype, shared_memory: int, capability: tuple[int, int] | None = None) -> Configs:
    """What was measured on GPUs of this compute capability, if anything was; else the table's configurations for a
    device where a block may take `shared_memory` bytes."""
    if dtype.itemsize == 4:
        table = _FLOAT[block_d(head_dim)]
    elif shared_memory >= HOPPER:
        table = _HALF[block_d(head_dim)]
    else:
        table = (_HALF_AMPERE if shared_memory >= AMPERE else _HALF_CONSUMER)[block_d(head_dim)]
    measured = MEASURED.get(capability, {}).get(block_d(head_dim)) if capability and dtype.itemsize == 2 else None
    # Without lists what was measured with them may spill.
    return replace(measured, in_order=(table.forward, table.queries)) if measured else table


def for_call(head_dim: int, dtype: torch.dtype, device: torch.device, groups: int) -> Configs:
    """The configurations of a call on `device` in which `groups` query heads share a key/value head.

    Those that were tuned for more heads a program than divide `groups` are left to the table.
    """
    if _forced is not None:
        return _forced
    if device.type != "cuda":
        return choose(head_dim, dtype, shared_memory(device))
    return _of_device(head_dim, dtype, device, groups)


@cache
def _of_device(head_dim: int, dtype: torch.dtype, device: torch.device, groups: int) -> Configs:
    winners = tuned.read(key_of(head_dim, dtype, device))
    fitting = {name: config for name, config in winners.items() if groups % config.heads == 0}
    chosen = choose(head_dim, dtype, shared_memory(device), torch.cuda.get_device_capability(device))
    return replace(chosen, in_order=chosen.by_query(gathers=False), **fitting) if fitting else chosen


def key_of(head_dim: int, dtype: torch.dtype, device: torch.device) -> Key:
    """What winners for calls like this are stored by."""
    name = torch.cuda.get_device_name(device)
    return Key(name, triton.__version__, str(dtype).removeprefix("torch."), block_d(head_dim), tuned.sources())


def forget() -> None:
    """Read the user's cache anew at the next call."""
    _of_device.cache_clear()


_forced: Configs | None = None


@contextmanager
def forced(configs: Configs) -> Iterator[None]:
    """Within it every call takes `configs`: for timing candidates, one thread at a time."""
    global _forced
    before, _forced = _forced, configs
    try:
        yield
    finally:
        _forced = before


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory a block may take; on a CPU, where kernels are interpreted, there is no limit."""
    return HOPPER if device.type == "cpu" else torch.cuda.get_device_properties(device).shared_memory_per_block_optin
