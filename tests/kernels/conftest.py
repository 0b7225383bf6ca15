"""The definition of the operator once more, slow and plain, and random inputs: what this room's tests compare with.

Nothing here calls the code under test. Fixtures return functions, since test files cannot import one another.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmabench.kernels import dma_flex, flex, nvrtc, reference, registry
from dmabench.kernels.cuda_driver import PackedArguments
from dmabench.kernels.lifetimes import eviction_times_by_heap

# What one rounding to the dtype costs, with room for the sums of a short row.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}


def live_keys(delta: Tensor, window: int, key_mask: Tensor | None = None, query_len: int | None = None) -> Tensor:
    """bool [B, G, Tq, Tk]: for each query i, the `window` best of the usable keys 0..i, the later of equals."""
    B, G, T = delta.shape
    live = torch.zeros(B, G, T, T, dtype=torch.bool)
    for b in range(B):
        for g in range(G):
            values = delta[b, g].tolist()
            usable = [
                (values[j], j)
                for j in range(T)
                if not math.isnan(values[j]) and (key_mask is None or bool(key_mask[b, j]))
            ]
            for i in range(T):
                best = sorted((pair for pair in usable if pair[1] <= i), reverse=True)[:window]
                live[b, g, i, [j for _, j in best]] = True
    return live[:, :, T - (query_len or T) :]


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, live: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse in float64 from an explicit mask; rows without a live key give 0 and -inf."""
    groups = q.shape[1] // k.shape[1]
    q, k, v, delta = (x.double() for x in (q, k, v, delta))
    k, v, delta, live = (x.repeat_interleave(groups, 1) for x in (k, v, delta, live))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.where(live, scores + torch.where(live.any(-2), delta, 0.0)[:, :, None], -torch.inf)
    some = live.any(-1, keepdim=True)
    probabilities = torch.where(some, torch.where(some, scores, 0.0).softmax(-1), 0.0)
    return probabilities @ v, scores.logsumexp(-1)


def make_inputs(
    B: int = 1,
    H: int = 2,
    G: int = 1,
    Tq: int | None = None,
    T: int = 32,
    D: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    grad: bool = False,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a positive delta with many distinct values, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, Tq or T, D), (B, G, T, D), (B, G, T, D))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes)
    delta = torch.randn(B, G, T, generator=generator).mul(0.5).exp().to(device)
    if grad:
        return tuple(x.requires_grad_() for x in (q, k, v, delta))  # type: ignore[return-value]
    return q, k, v, delta


def gradients(out: Tensor, leaves: Any, seed: int = 1) -> tuple[Tensor, ...]:
    """Gradients of a fixed random projection of out, in float64 whatever the dtype of out."""
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(out, tuple(leaves), dout.to(out.device, out.dtype))


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None, what: str = "") -> None:
    """Largest difference, in units of the largest expected value, is within what `dtype` (found's own) must cost."""
    assert found.shape == expected.shape, what
    found, expected, tolerance = found.double(), expected.double(), TOLERANCE[dtype or found.dtype]
    same = found == expected  # infinities
    difference = torch.where(same, 0.0, (found - expected).abs())
    size = expected[expected.isfinite()].abs().max().clamp(min=1.0) if expected.isfinite().any() else 1.0
    assert bool((difference <= tolerance * size).all()), f"{what}: {difference.max():.3g} > {tolerance * size:.3g}"


NAMES = ("out", "dq", "dk", "dv", "ddelta")


def fixed_dout(leaves: Any) -> Tensor:
    """The gradient of the output that `check_within_budget` uses."""
    q = leaves[0]
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(7)).to(q.device, q.dtype)


def _expect(leaves: Any, evict: Tensor, scale: float, precision: torch.dtype, rounding: torch.dtype | None):
    q, k, v, delta = (x.detach().to(precision).requires_grad_() for x in leaves)
    Tq, T = q.shape[2], k.shape[2]
    positions = torch.arange(T - Tq, T, device=q.device)
    birth = torch.arange(T, device=q.device).expand(evict.shape)
    out, lse = reference.attend(q, k, v, delta, birth, evict, scale, positions, rounding)
    grads = torch.autograd.grad(out, (q, k, v, delta), fixed_dout(leaves).to(precision))
    return (out.detach(), *grads), lse


def check_within_budget(leaves: Any, evict: Tensor, scale: float, out: Tensor) -> SimpleNamespace:
    """out and its gradients against float64, within what the dtype itself must cost: twice the error of the reference
    that rounds where a tensor core does.

    The floor is for what cancels: with one live key ds is exactly 0, where a kernel has the rounding of dout * out,
    about eps * sqrt(D) for each query row and head.

    Args:
        leaves: q, k, v, delta that `out` was computed from; all but delta require gradients.
        evict: the mask, int [B, G, Tk] as in a Plan, made without the code under test.

    Returns:
        exact (dict of float64 tensors), lse (the exact one) and found (dict of what was checked).
    """
    dtype = leaves[0].dtype
    eps = torch.finfo(dtype).eps
    wanted = leaves if leaves[3].requires_grad else leaves[:3]
    found = (out.detach(), *torch.autograd.grad(out, tuple(wanted), fixed_dout(leaves)))
    exact, lse = _expect(leaves, evict, scale, torch.float64, None)
    low, _ = _expect(leaves, evict, scale, torch.float32, None if dtype == torch.float32 else dtype)
    floor = eps * leaves[0].numel() ** 0.5
    for name, mine, rounded, right in zip(NAMES, found, low, exact, strict=False):
        assert mine.shape == right.shape and bool(mine.isfinite().all()), name
        error, cost = (float((x.double() - right).norm()) for x in (mine, rounded))
        budget = 2 * cost + 2 * eps * float(right.norm()) + 2 * floor
        assert error <= budget, f"{name}: {error:.3g} > {budget:.3g} (norm {float(right.norm()):.3g})"
        worst = float((mine.double() - right).abs().max())
        allowed = 8 * max(float((rounded.double() - right).abs().max()), eps * float(right.abs().max()), floor)
        assert worst <= allowed, f"{name}: one entry is off by {worst:.3g} > {allowed:.3g}"
    return SimpleNamespace(
        exact=dict(zip(NAMES, exact, strict=True)), lse=lse, found=dict(zip(NAMES, found, strict=False))
    )


def evict_by_heap(delta: Tensor, window: int, key_mask: Tensor | None = None) -> Tensor:
    """Eviction times by definition, computed on the CPU, on delta's device."""
    cpu_mask = None if key_mask is None else key_mask.cpu()
    return eviction_times_by_heap(delta.detach().cpu(), window, cpu_mask).to(delta.device)


@pytest.fixture(scope="session")
def budget() -> SimpleNamespace:
    """check(leaves, evict, scale, out), expect(leaves, evict, scale, precision, rounding), dout(leaves) and
    by_heap(delta, window, key_mask)"""
    return SimpleNamespace(check=check_within_budget, expect=_expect, dout=fixed_dout, by_heap=evict_by_heap)


@pytest.fixture(scope="session")
def definition() -> SimpleNamespace:
    """live_keys and naive_attention"""
    return SimpleNamespace(live_keys=live_keys, attention=naive_attention)


@pytest.fixture(scope="session")
def inputs() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """make_inputs(B, H, G, Tq, T, D, dtype, seed, grad, device)"""
    return make_inputs


@pytest.fixture(scope="session")
def grads() -> Callable[..., tuple[Tensor, ...]]:
    """gradients(out, leaves)"""
    return gradients


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """assert_close(found, expected, dtype, what)"""
    return assert_close


@pytest.fixture(scope="session")
def compiler() -> None:
    """torch's compiler, ready: its imports and its look at the CPU take 15 s in each process, whatever is compiled."""
    torch.compile(lambda x: x.sin() + 1)(torch.zeros(64))


@pytest.fixture
def eager_flex(monkeypatch) -> Iterator[None]:
    """FlexAttention without its compiler: torch's own dense T x T evaluation of score and mask functions.

    It has the backward on a CPU that the compiled one lacks, but reads no tile lists.
    """
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_compiled", lambda biased: flex._with_bias if biased else flex._without_bias)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


@pytest.fixture
def eager_dma_flex(eager_flex) -> Callable[..., Tensor]:
    """dma/flex's attend, evaluated eagerly: (q, k, v, *, delta, plan, scale) -> out"""

    def attend(q, k, v, *, delta, plan, scale):
        return dma_flex.attend(q, k, v, delta=delta, plan=plan, scale=scale)[0]

    return attend


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    """registry.backends() collected anew within the test, and forgotten after it."""
    registry.backends.cache_clear()
    yield
    registry.backends.cache_clear()


@pytest.fixture(scope="session")
def emulator() -> ModuleType:
    """cuda_on_cpu/emulator.py: CUDA sources compiled for the CPU. Skips where there is no C++ compiler."""
    path = Path(__file__).parent / "cuda_on_cpu" / "emulator.py"
    spec = importlib.util.spec_from_file_location("cuda_on_cpu_emulator", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if reason := module.missing():
        pytest.skip(reason)
    return module


@pytest.fixture(scope="session")
def emulated(emulator, tmp_path_factory) -> Callable[..., Any]:
    """emulated(source, defines) -> object with .launch(name, grid, block, shared_bytes, *arguments, reverse=False)"""
    folder = tmp_path_factory.mktemp("cuda_on_cpu")

    def build(source: Path, defines: dict[str, Any] | None = None, kernels: Any = None) -> Any:
        return emulator.emulated(source, defines or {}, folder, kernels)

    return build


@pytest.fixture
def kernels_on_cpu(emulated, monkeypatch) -> None:
    """Kernels that the package asks for run on CPU tensors, emulated."""

    def kernel(source, name, defines):
        kernels = emulated(source, defines)

        def start(grid, block, shared_bytes, *arguments):
            PackedArguments(arguments).fill(arguments)  # the driver takes these types, too
            kernels.launch(name, grid, block, shared_bytes, *arguments)

        return SimpleNamespace(launch=start)

    monkeypatch.setattr(nvrtc, "kernel", kernel)


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """What a kernel does not write is NaN."""
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda x, shape, dtype=None: torch.full(shape, torch.nan, dtype=dtype or x.dtype, device=x.device),
    )
