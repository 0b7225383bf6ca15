"""Random inputs of one shape: fresh, never zeros, and the named delta distributions. Torch; runs in the worker."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmabench.errors import Refusal
from dmabench.kernels import Plan, Problem, latent, make_plan, native_sparse
from dmabench.workload.cells import Shape

TORCH_DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def named_delta(name: str, batch: int, kv_heads: int, seqlen: int, window: int, seed: int) -> Tensor:
    """delta [B, G, T], float32, on the CPU, the same on every device: exp(0.5 softplus(x)) with x by name.

    z and n are standard normal, t = j / T: `iid` z; `rising` z + 4t; `falling` z - 4t; `clustered` z[j // 64] + 0.1 n;
    `ar1` x_j = 0.99 x_(j-1) + z; `sawtooth` -(j mod 4w) / w + 0.05 z; `constant` 0.
    """
    generator = np.random.default_rng(_seed_of(name, batch, kv_heads, seqlen, window, seed))
    shape = (batch, kv_heads, seqlen)
    j = np.arange(seqlen)
    z = generator.standard_normal(shape)
    if name == "iid":
        x = z
    elif name in ("rising", "falling"):
        x = z + (4 if name == "rising" else -4) * j / seqlen
    elif name == "clustered":
        x = z[..., j // 64] + 0.1 * generator.standard_normal(shape)
    elif name == "ar1":
        x = z
        for i in range(1, seqlen):
            x[..., i] += 0.99 * x[..., i - 1]
    elif name == "sawtooth":
        x = -(j % (4 * window)) / window + 0.05 * z
    elif name == "constant":
        x = np.zeros(shape)
    else:
        raise Refusal(f"delta {name!r} is not a distribution")
    return torch.from_numpy(np.exp(0.5 * np.logaddexp(0, x))).float()


PADDINGS = ("left", "right")


def padded_keys(name: str, batch: int, seqlen: int) -> Tensor:
    """Key mask, bool [B, T] on the CPU, False for padding at the `left` or `right` end.

    Row b is padded by a 4 * 2^b-th of its keys, at least one; the last of several rows is nothing but padding.
    """
    if name not in PADDINGS:
        raise ValueError(f"padding {name!r} is not one of {', '.join(PADDINGS)}")
    padding = torch.tensor([[-(-seqlen // (4 << b))] for b in range(batch)])
    if batch > 1:
        padding[-1] = seqlen
    real = torch.arange(seqlen) >= padding
    return real if name == "left" else real.flip(-1)


def delta_from_file(path: str, batch: int, kv_heads: int, seqlen: int) -> Tensor:
    """delta of a trained model from a .npy file, [G, T'] or [B, G, T'] with T' >= seqlen; the first seqlen are taken.

    Raises:
        Refusal: no such file, not an array, shapes that do not fit, NaN or infinite values.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"--delta file:{path}: cannot be read as a .npy array ({error}); save it with numpy.save"
        ) from error
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1] != kv_heads or array.shape[2] < seqlen or array.shape[0] not in (1, batch):
        raise Refusal(
            f"--delta file:{path} has shape {array.shape}; this run needs [{batch} or 1, {kv_heads}, {seqlen} or "
            "more]: set --kv-heads, --batch and --seqlen to what the file holds"
        )
    array = array[..., :seqlen].astype(np.float32)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise Refusal(
            f"--delta file:{path} has {len(bad)} NaN or infinite values, the first at {tuple(map(int, bad[0]))}; "
            "find where the model that wrote it overflowed"
        )
    return torch.from_numpy(np.broadcast_to(array, (batch, kv_heads, seqlen)).copy())


def _seed_of(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


@dataclass
class Inputs:
    """Tensors that all cells of one shape share, made when first asked for."""

    shape: Shape
    delta_files: dict[str, str] = field(default_factory=dict)
    """Label in the cell ("file:name@hash", "model:name@hash:layer:text@hash") -> path of a .npy file."""
    padding: str | None = None
    """One of PADDINGS: what the plan leaves out. Tests use it; cells have no padding."""
    _deltas: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPE[self.shape.dtype]

    def normal(self, what: str, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal numbers; the same for the same word and seed."""
        seed = _seed_of(what, self.shape.seed) % (1 << 63)
        generator = torch.Generator(self.shape.device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=self.shape.device, dtype=dtype or self.dtype)

    @cached_property
    def q(self) -> Tensor:
        """[B, H, T, D]."""
        return self.normal("q", self.shape.batch, self.shape.heads, self.shape.seqlen, self.shape.head_dim)

    @cached_property
    def k(self) -> Tensor:
        """[B, G, T, D]."""
        return self.normal("k", self.shape.batch, self.shape.kv_heads, self.shape.seqlen, self.shape.head_dim)

    @cached_property
    def v(self) -> Tensor:
        """[B, G, T, D]."""
        return self.normal("v", self.shape.batch, self.shape.kv_heads, self.shape.seqlen, self.shape.head_dim)

    @cached_property
    def dout(self) -> Tensor:
        """[B, H, T, D], the gradient of the output that timings use: every row filled."""
        return self.normal("dout", *self.q.shape)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for `key`: cells of one shape share it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def examples(self, function: str, problem: Problem) -> dict[str, Tensor]:
        """What the kernel of "mla" or "nsa" is called with, by argument name."""
        make = {"mla": latent.example_inputs, "nsa": native_sparse.example_inputs}[function]
        generator = torch.Generator(self.shape.device).manual_seed(_seed_of(function, self.shape.seed) % (1 << 63))
        return self.once(("examples", function), lambda: make(problem, generator))

    @cached_property
    def weight(self) -> Tensor:
        """The sampling weight [G*D, G] that the importance in the timed region is computed with."""
        width = self.shape.kv_heads * self.shape.head_dim
        return self.normal("weight", width, self.shape.kv_heads, dtype=torch.float32) / width**0.5

    @cached_property
    def gate(self) -> Tensor:
        """[G]."""
        return self.normal("gate", self.shape.kv_heads, dtype=torch.float32) * 0.02

    @cached_property
    def key_mask(self) -> Tensor | None:
        """bool [B, T], False for padded keys; None without padding."""
        if self.padding is None:
            return None
        return padded_keys(self.padding, self.shape.batch, self.shape.seqlen).to(self.shape.device)

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5

    def delta(self, name: str, window: int) -> Tensor:
        """[B, G, T] float32 on the device (T + 1 where a token is decoded after T); only the sawtooth depends on the
        window."""
        key = (name, window if name == "sawtooth" else 0)
        if key not in self._deltas:
            size = (self.shape.batch, self.shape.kv_heads, self.shape.key_len)
            if name in self.delta_files:
                delta = delta_from_file(self.delta_files[name], *size)
            else:
                delta = named_delta(name, *size, key[1], self.shape.seed)
            self._deltas[key] = delta.to(self.shape.device)
        return self._deltas[key]

    def plan(self, name: str, window: int) -> Plan:
        """A fresh plan, nothing derived yet."""
        return make_plan(self.delta(name, window), window, key_mask=self.key_mask)
