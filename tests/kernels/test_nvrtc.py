"""Compiling with NVRTC, which needs no GPU; the cache of what was compiled; arguments as the driver takes them."""

import ctypes
import struct
import sys

import numpy
import pytest
import torch

from dmabench.kernels import nvrtc
from dmabench.kernels.cuda_driver import DriverError, PackedArguments

needs_nvrtc = pytest.mark.skipif(nvrtc.missing("cuda") is not None, reason=str(nvrtc.missing("cuda")))

SOURCE = """
#include "factor.cuh"
extern "C" __global__ void scale(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= FACTOR + BY;
}
extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* x) {
    float values[64];
    for (int i = 0; i < 64; ++i) values[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < 64; ++j) x[(i * 64 + j) * 1024 + threadIdx.x] = values[i] * values[j];
}
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A .cu file with an included one, and a cache of its own."""
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "factor.cuh").write_text("#define FACTOR 2\n")
    path = tmp_path / "scale.cu"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def compiled(monkeypatch):
    """What is really compiled, rather than taken from the cache."""
    calls = []
    compile_now = nvrtc._compile
    monkeypatch.setattr(nvrtc, "_compile", lambda *a: calls.append(a) or compile_now(*a))
    return calls


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a"])
def test_compiles_without_a_gpu(source, arch):
    found = nvrtc.compile_source(source, arch, {"BY": 3})
    assert found.cubin.startswith(b"\x7fELF") and f"'scale' for '{arch}'" in found.log


@needs_nvrtc
def test_reads_registers_and_spills(source):
    found = nvrtc.resources(nvrtc.compile_source(source, "sm_90", {"BY": 3}).log)
    assert set(found) == {"scale", "spills"}
    assert 0 < found["scale"].registers < 20 and found["scale"].spill_stores == found["scale"].spill_loads == 0
    assert found["spills"].registers <= 32 and found["spills"].spill_loads > 0 and found["spills"].stack > 0


@needs_nvrtc
def test_an_error_shows_the_log(source):
    with pytest.raises(nvrtc.CompileError, match=r'scale\.cu with .*sm_90.*\n.*identifier "BY" is undefined'):
        nvrtc.compile_source(source, "sm_90")


@needs_nvrtc
def test_compiles_once_for_all_that_matters(source, compiled):
    first = nvrtc.compile_source(source, "sm_90", {"BY": 3})
    assert nvrtc.compile_source(source, "sm_90", {"BY": 3}) == first and len(compiled) == 1
    assert nvrtc.compile_source(source, "sm_80", {"BY": 3}) != first and len(compiled) == 2
    assert nvrtc.compile_source(source, "sm_90", {"BY": 4}) != first and len(compiled) == 3
    (source.parent / "factor.cuh").write_text("#define FACTOR 5\n")
    assert nvrtc.compile_source(source, "sm_90", {"BY": 3}) != first and len(compiled) == 4
    (source.parent / "factor.cuh").write_text("#define FACTOR 2\n")
    assert nvrtc.compile_source(source, "sm_90", {"BY": 3}) == first and len(compiled) == 4


@needs_nvrtc
def test_another_version_of_nvrtc_compiles_anew(source, compiled, monkeypatch):
    nvrtc.compile_source(source, "sm_90", {"BY": 3})
    monkeypatch.setattr(nvrtc, "_version", lambda: (99, 0))
    nvrtc.compile_source(source, "sm_90", {"BY": 3})
    assert len(compiled) == 2


DAMAGE = {
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
    "another file": lambda content: b"nonsense",
    "overwritten": lambda content: content[:-9] + b"x" * 9,
}


@needs_nvrtc
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_ignored(source, compiled, damage):
    first = nvrtc.compile_source(source, "sm_90", {"BY": 3})
    (kept,) = (source.parent / "cache" / "cubin").iterdir()
    kept.write_bytes(DAMAGE[damage](kept.read_bytes()))
    second = nvrtc.compile_source(source, "sm_90", {"BY": 3})
    assert second.cubin == first.cubin and len(compiled) == 2
    assert nvrtc.compile_source(source, "sm_90", {"BY": 3}) == second and len(compiled) == 2, "it was not mended"


@needs_nvrtc
def test_a_cache_that_cannot_be_written_is_no_error(source, compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path / "file"))
    first, second = (nvrtc.compile_source(source, "sm_90", {"BY": 3}) for _ in range(2))
    assert first.cubin == second.cubin and len(compiled) == 2


@needs_nvrtc
def test_a_failed_write_leaves_nothing(source, monkeypatch):
    def fail(*_):
        raise OSError("full")

    monkeypatch.setattr(nvrtc.os, "replace", fail)
    nvrtc.compile_source(source, "sm_90", {"BY": 3})
    assert list((source.parent / "cache" / "cubin").iterdir()) == []


def test_missing_says_why(monkeypatch):
    assert nvrtc.missing("cpu") == "CUDA C++ kernels need a CUDA device"
    nvrtc._missing_compiler.cache_clear()
    monkeypatch.setattr(nvrtc, "nvrtc", None)
    try:
        assert nvrtc.missing("cuda") == "CUDA C++ kernels need the package cuda-bindings, which is not installed"
    finally:
        nvrtc._missing_compiler.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="cuda-bindings is a dependency on Linux alone")
def test_nvrtc_is_there():
    """So that the tests above are not skipped unseen where NVRTC must be."""
    assert nvrtc.missing("cuda") is None


def test_packs_arguments_as_the_driver_reads_them():
    x = torch.zeros(3)
    arguments = (x, None, -5, numpy.int64(1 << 40), 1.5, ctypes.c_int32(7), ctypes.c_float(0.25), 9)
    packed = PackedArguments(arguments)
    address = packed.fill(arguments)
    pointers = (ctypes.c_void_p * 8).from_address(address)
    widths = {"Q": 8, "i": 4, "q": 8, "f": 4}
    read = [struct.unpack(c, ctypes.string_at(p, widths[c]))[0] for c, p in zip("QQiqfifi", pointers, strict=True)]
    assert read == [x.data_ptr(), 0, -5, 1 << 40, 1.5, 7, 0.25, 9]


@pytest.mark.parametrize("argument", ["x", numpy.float64(1.0), numpy.int8(1), ctypes.c_int8(1)])
def test_refuses_arguments_of_unknown_width(argument):
    with pytest.raises(TypeError, match="a kernel argument is a tensor, None, a float, an int, or a numpy or ctypes"):
        PackedArguments((argument,))


@pytest.mark.gpu
def test_launches(source):
    x = torch.ones(1000, device="cuda")
    kernel = nvrtc.kernel(source, "scale", {"BY": 3})
    assert nvrtc.kernel(source, "scale", {"BY": 3}) is kernel
    kernel.launch((8,), 128, 0, x, numpy.int32(900))
    kernel.launch((0,), 128, 0, x, numpy.int32(900))
    assert torch.equal(x, torch.where(torch.arange(1000, device="cuda") < 900, 5.0, 1.0))


@pytest.mark.gpu
def test_launches_on_the_current_stream_and_into_a_graph(source):
    kernel = nvrtc.kernel(source, "scale", {"BY": 3})
    x, graph = torch.ones(100, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.launch((1,), 128, 0, x, numpy.int32(100))
    assert x.eq(1).all()
    graph.replay()
    graph.replay()
    assert x.eq(25).all()


@pytest.mark.gpu
def test_a_refused_launch_names_the_error(source):
    with pytest.raises(DriverError, match=r"scale: grid \(1,\), 4096 threads, 0 bytes shared: CUDA_ERROR_INVALID"):
        nvrtc.kernel(source, "scale", {"BY": 3}).launch((1,), 4096, 0, torch.ones(1, device="cuda"), numpy.int32(1))
