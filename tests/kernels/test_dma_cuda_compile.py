"""Every variant of the CUDA kernels compiled for the GPUs they are for, without one: what ptxas gives them."""

import time

import pytest
import torch

from dmabench.kernels import nvrtc
from dmabench.kernels.dma_cuda import hopper, hopper_backward, launch

pytestmark = pytest.mark.skipif(nvrtc.missing("cuda") is not None, reason=str(nvrtc.missing("cuda")))

SOURCES = {
    "forward": ("dma_forward",),
    "backward_dq": ("dma_backward_dq",),
    "backward_dkdv": ("dma_backward_dkdv", "dma_backward_join"),
}
# Bytes a thread that spill, at most, over NVRTC 13.0 and 13.2. At D = 128 sums take half of all registers, and the
# kernels are written so that the other half suffices; a handful in those below was as near as ptxas came.
SPILLED = {("forward", 128, False): 8, ("backward_dq", 128, False): 8, ("backward_dkdv", 128, False): 32}
REGISTERS = {64: 245, 128: 255}
"""At most: two CTAs of 128 threads share the 65536 registers of a multiprocessor."""
JOIN_REGISTERS = {64: 104, 128: 176}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path))


DTYPES = (("bf16", torch.bfloat16, ("sm_80", "sm_90")), ("fp16", torch.float16, ("sm_90",)))
VARIANTS = [
    pytest.param(source, head_dim, dtype, gathers, arch, id=f"{source}-{head_dim}-{name}-{order}-{arch}")
    for source in SOURCES
    for head_dim in launch.HEAD_DIMS
    for name, dtype, architectures in (
        ("bf16", torch.bfloat16, ("sm_80", "sm_90")),
        ("fp16", torch.float16, ("sm_90",)),
    )
    for order, gathers in (("gathered", True), ("in order", False))
    for arch in architectures
    if not (source == "backward_dkdv" and gathers)  # it reads tiles in either case
]


@pytest.mark.parametrize(("source", "head_dim", "dtype", "gathers", "arch"), VARIANTS)
def test_fits_the_registers(source, head_dim, dtype, gathers, arch):
    began = time.process_time()
    compiled = nvrtc.compile_source(launch.FOLDER / f"{source}.cu", arch, launch.defines(head_dim, dtype, gathers))
    assert time.process_time() - began < 5, "seconds to compile"
    assert "warning" not in compiled.log
    found = nvrtc.resources(compiled.log)
    assert set(found) == set(SOURCES[source])
    for name, used in found.items():
        limit = JOIN_REGISTERS if name == "dma_backward_join" else REGISTERS
        assert used.registers <= limit[head_dim], name
        allowed = 0 if name == "dma_backward_join" else SPILLED.get((source, head_dim, gathers), 0)
        assert max(used.spill_stores, used.spill_loads) <= allowed, name


@pytest.mark.parametrize("source", ["forward", "backward_dq", "backward_dkdv"])
def test_two_blocks_share_a_multiprocessor(source):
    """Of the 227 KiB of an H100, of which each block also takes 1 KiB; one block fits the 99 KiB of a smaller card."""
    used = launch.shared_bytes(source, 128)
    assert 2 * (used + 1024) <= 227 << 10 and used <= 99 << 10


HOPPER_VARIANTS = [
    pytest.param(head_dim, dtype, gathers, groups, id=f"{head_dim}-{name}-{order}-{groups}")
    for head_dim in launch.HEAD_DIMS
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    for order, gathers in (("gathered", True), ("in order", False))
    for groups in (1, 2)
    if gathers or dtype == torch.bfloat16
]


def holds(source, defines):
    """No spill, no product that ptxas makes wait for another ("serialized", it says), and registers for all threads."""
    began = time.process_time()
    compiled = nvrtc.compile_source(launch.FOLDER / f"{source}.cu", "sm_90a", defines)
    assert time.process_time() - began < 5, "seconds to compile"
    assert "warning" not in compiled.log and "serialized" not in compiled.log
    found = nvrtc.resources(compiled.log)
    assert found
    for name, used in found.items():
        assert used.registers * 384 <= 65536 and used.spill_stores == used.spill_loads == 0, name


@pytest.mark.parametrize(("head_dim", "dtype", "gathers", "groups"), HOPPER_VARIANTS)
def test_hopper_forward_fits_the_registers(head_dim, dtype, gathers, groups):
    holds("hopper_forward", hopper.variant(head_dim, groups).defines(head_dim, dtype, gathers))


DQ_VARIANTS = [
    (128, torch.bfloat16, True, 2),
    (128, torch.float16, True, 2),
    (128, torch.bfloat16, False, 2),
    (128, torch.bfloat16, True, 1),
    (64, torch.bfloat16, True, 2),
]


@pytest.mark.parametrize(("head_dim", "dtype", "gathers", "groups"), DQ_VARIANTS)
def test_hopper_dq_fits_the_registers(head_dim, dtype, gathers, groups):
    holds("hopper_backward_dq", hopper_backward.dq_variant(head_dim, groups).defines(head_dim, dtype, gathers))


@pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.bfloat16), (128, torch.bfloat16), (128, torch.float16)])
def test_hopper_dkdv_fits_the_registers(head_dim, dtype):
    holds("hopper_backward_dkdv", hopper_backward.dkdv_defines(head_dim, dtype))
