"""The CUDA kernels of dma/cuda: compiled for the GPUs they are for, and run on the CPU by the emulator."""

from types import SimpleNamespace

import pytest
import torch

from dmabench.kernels import dma_cuda, make_plan, nvrtc
from dmabench.kernels.cuda_driver import PackedArguments
from dmabench.kernels.dma_cuda import launch

HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def on_cpu(emulated, monkeypatch):
    """dma_cuda.attend over CPU tensors, its kernels emulated and its results poisoned."""

    def kernel(source, name, defines):
        kernels = emulated(source, defines)

        def start(grid, block, shared_bytes, *arguments):
            PackedArguments(arguments).fill(arguments)  # the driver takes these types, too
            kernels.launch(name, grid, block, shared_bytes, *arguments)

        return SimpleNamespace(launch=start)

    def poisoned(x, shape, dtype=None):
        return torch.full(shape, torch.nan, dtype=dtype or x.dtype)

    monkeypatch.setattr(nvrtc, "kernel", kernel)
    monkeypatch.setattr(launch, "_blocks_at_once", lambda _: 3)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    return dma_cuda.attend


CASES = {
    "one": dict(T=1, window=1),
    "window 1": dict(T=37, window=1),
    "window 7": dict(T=200, window=7, H=2, G=1, gathers=True),
    "window 64, gathered": dict(T=300, window=64, H=2, G=1, D=128, gathers=True),
    "window 64, in order": dict(T=300, window=64, H=2, G=1, gathers=False),
    "causal": dict(T=200, window=200, gathers=False),
    "few queries": dict(T=300, Tq=150, window=40, H=2, G=2, gathers=True),
    "few queries in order": dict(T=300, Tq=150, window=100, D=128, gathers=False),
    "padding": dict(T=200, window=30, B=2, padding=True, gathers=True),
    "padding in order": dict(T=200, window=30, B=2, padding=True, gathers=False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
def test_against_the_definition(case, dtype, on_cpu, inputs, definition, grads, close, monkeypatch):
    options = dict(H=1, G=1, D=64, gathers=False, padding=False) | CASES[case]
    window, gathers, padding = (options.pop(name) for name in ("window", "gathers", "padding"))
    q, k, v, delta = inputs(**options, dtype=dtype, grad=True)
    B, T, Tq = q.shape[0], k.shape[2], q.shape[2]
    key_mask = None
    if padding:
        key_mask = torch.ones(B, T, dtype=torch.bool)
        key_mask[0, : T // 3] = False
        key_mask[-1, T // 2 :] = False
    plan = make_plan(delta.detach(), window, key_mask=key_mask, query_len=Tq)
    monkeypatch.setattr(type(plan), "gathers", gathers)
    live = definition.live_keys(delta.detach(), window, key_mask, Tq)
    expected, expected_lse = definition.attention(q, k, v, delta, live)
    out, lse = on_cpu(q, k, v, delta=delta, plan=plan, scale=q.shape[-1] ** -0.5)
    close(out, expected, dtype, "out")
    close(lse, expected_lse.float(), torch.float32, "lse")
    for name, found, wanted in zip(
        ("dq", "dk", "dv", "ddelta"), grads(out, (q, k, v, delta)), grads(expected, (q, k, v, delta)), strict=True
    ):
        close(found, wanted, dtype, name)
        if name != "dq":
            dead = ~live.any(-2)
            assert not found[dead].any(), f"{name} of keys that nobody attends to"
