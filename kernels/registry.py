"""Every attention that can be called or timed, by id: `function/name`, such as dma/flex or dense/sdpa-flash.

A backend from outside registers through the entry-point group `dmabench.backends`: an entry point that loads to a
`Backend` or to a list of them (CONTRIBUTING shows one in ten lines).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch

FUNCTIONS = {
    "dma": "dynamic mask attention: attend(q, k, v, *, delta, plan, scale) -> (out, lse)",
    "dense": "causal attention to every key: attend(q, k, v, *, scale) -> out",
    "swa": "causal attention to the last `window` keys: attend(q, k, v, *, window, scale) -> out",
    "mla": "multi-head latent attention: attend(q_nope, q_rope, latent, k_rope, up_k, up_v, *, scale) -> out",
    "nsa": "native sparse attention: attend(q, k, v, *, gates, settings, scale) -> out",
}
ENTRY_POINTS = "dmabench.backends"


class Unsupported(Exception):
    """This backend cannot do this: the message says why, and what would help."""


@dataclass(frozen=True)
class Problem:
    """What a backend is asked for, in the terms in which it may refuse."""

    device: str
    """"cpu" or "cuda"."""
    dtype: torch.dtype
    batch: int
    heads: int
    kv_heads: int
    query_len: int
    key_len: int
    head_dim: int
    window: int | None
    backward: bool

    @property
    def groups(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads


HALF = (torch.float16, torch.bfloat16)


def needs_half(problem: Problem, what: str) -> str | None:
    """The refusal of a kernel that exists in half precision alone, or None."""
    if problem.dtype in HALF:
        return None
    return f"{what} takes fp16 and bf16, not {str(problem.dtype).removeprefix('torch.')}"


def needs_cuda(what: str) -> Callable[[str], str | None]:
    """`missing` of a backend that runs on CUDA alone."""
    return lambda device: None if device == "cuda" else f"{what} needs a CUDA device"


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """Will this call be differentiated?"""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _always(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of one attention function. q is [B, H, T, D], k and v are [B, G, T, D], any strides."""

    function: str
    name: str
    attend: Callable[..., Any]
    """The call, with the signature that FUNCTIONS gives for its function; differentiable where `passes` has bwd."""
    passes: tuple[str, ...] = ("fwd", "bwd", "fwd+bwd")
    missing: Callable[[str], str | None] = _always
    """device -> why it cannot run there at all, or None."""
    refuses: Callable[[Problem], str | None] = _always
    """problem -> why it cannot do this one, or None."""
    workspace: Callable[[Problem], int] = lambda _: 0
    """problem -> bytes beside inputs and outputs that grow as T^2, so that it can be refused in time."""
    prepare: Callable[..., Any] = lambda **_: None
    """(plan=..., delta=..., problem=...) converts the plan ahead of the call; timed as part of the plan."""
    executed_pairs: Callable[..., int | None] = lambda **_: None
    """(plan=..., problem=...) -> query-key pairs computed, all heads, where tiles make it more than are kept."""
    padded_heads: Callable[[Problem], int | None] = _always
    """problem -> query heads a group is padded to; None where it is not. A padded time is an upper bound."""

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(f"{self.name}: unknown function {self.function!r}, known are {', '.join(FUNCTIONS)}")

    @property
    def id(self) -> str:
        return f"{self.function}/{self.name}"

    def unavailable(self, device: str) -> str | None:
        """Why it cannot run on `device` ("cpu" or "cuda"), or None."""
        return self.missing(device)

    def passes_on(self, device: str) -> tuple[str, ...]:
        """The passes it does not refuse there on a plain problem (fp32 on a CPU, bf16 on CUDA)."""
        dtype = torch.bfloat16 if device == "cuda" else torch.float32

        def plain(name: str) -> Problem:
            queries = 1 if name == "decode" else 256
            return Problem(device, dtype, 1, 2, 1, queries, 256, 64, 64, backward="bwd" in name)

        return tuple(name for name in self.passes if not self.refusal(plain(name)))

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot do `problem`, or None: the one question to ask before a call."""
        if problem.backward and "bwd" not in self.passes:
            return f"{self.id} has no backward"
        return self.missing(problem.device) or self.refuses(problem)


@cache
def backends() -> tuple[Backend, ...]:
    """All of them: our own in the order of the tables, then those from outside."""
    from dmabench.kernels import (
        dense,
        dma_cuda,
        dma_flex,
        dma_masked,
        dma_reference,
        dma_triton,
        latent,
        live_keys,
        sliding_window,
    )
    from dmabench.kernels.native_sparse import backends as native_sparse

    dma = (dma_reference, dma_flex, dma_triton, dma_cuda, dma_masked, live_keys)
    own = (*dma, dense, sliding_window, latent, native_sparse)
    found = [backend for module in own for backend in module.BACKENDS]
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        loaded = entry.load()
        found += loaded if isinstance(loaded, (list, tuple)) else [loaded]
    ids = [backend.id for backend in found]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"two backends register as {', '.join(twice)}: rename or uninstall one")
    return tuple(found)


_by_id: dict[str, Backend] = {}
_filled_from: tuple[Backend, ...] = ()


def _load() -> bool:
    """Fills _by_id with what `backends` says, unless it has."""
    global _by_id, _filled_from
    found = backends()
    if found is not _filled_from:
        _by_id, _filled_from = {backend.id: backend for backend in found}, found
    return True


# Run when a call is traced, and not traced: which packages are installed is no part of a graph. What
# torch.compiler.assume_constant_result does, without importing the compiler.
_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def get(backend_id: str) -> Backend:
    """The backend with this id; ValueError names the known ones."""
    _load()
    found = _by_id.get(backend_id)
    if found is None:
        raise ValueError(f"no backend {backend_id!r}; known are {', '.join(_by_id)}")
    return found
