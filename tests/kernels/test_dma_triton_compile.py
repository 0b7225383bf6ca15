"""The Triton kernels compiled for cards that are not there: that they compile, fit, and do not spill where it counts.

What is compiled is what the operators launch: the launches are recorded, with their arguments, block sizes and options.
"""

import re
import subprocess

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dmabench.kernels import Plan, dma_triton, make_plan
from dmabench.kernels.dma_triton import configs, ops

SHARED = {80: configs.AMPERE, 86: configs.CONSUMER, 90: configs.HOPPER, 100: configs.HOPPER, 120: configs.CONSUMER}
KERNELS = ("forward_kernel", "backward_queries_kernel", "backward_keys_kernel")
BF16, FP32 = torch.bfloat16, torch.float32
_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}


class _Recorder:
    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.calls.append((arguments, named))


@pytest.fixture
def compile_kernel(monkeypatch):
    """compile_kernel(kernel, cc, D, dtype, gathers) -> what triton.compile returns."""

    def run(kernel, cc, D, dtype=BF16, gathers=True):
        recorder = _Recorder()
        with monkeypatch.context() as patched:
            patched.setattr(Plan, "gathers", gathers)
            patched.setattr(configs, "shared_memory", lambda device: SHARED[cc])
            for name in KERNELS:
                launcher = getattr(ops, f"launch_{name.removesuffix('_kernel')}")
                patched.setattr(launcher, "kernel", recorder if name == kernel else _Recorder())
            q, k, v = (torch.empty(1, heads, 256, D, dtype=dtype) for heads in (4, 2, 2))
            delta = torch.rand(1, 2, 256)
            structures = dma_triton.structures(make_plan(delta, 100), delta, backward=True)
            out, _, relative_lse = ops.forward(q, k, v, delta, *structures, 0.1)
            ops.backward(out, q, k, v, delta, *structures, out, relative_lse, 0.1)
        ((arguments, named),) = recorder.calls
        return _compile(getattr(ops, kernel), arguments, named, cc)

    return run


def _compile(kernel, arguments, named, cc):
    """As triton's launcher would for these arguments."""
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **named}
    options = {name: values.pop(name) for name in list(values) if name not in kernel.arg_names}
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        special = not parameter.do_not_specialize
        one = special and isinstance(value, int) and value == 1
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if special and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)):
            hints[(place,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, constants, hints), target=GPUTarget("cuda", cc, 32), options=options
    )


def _cuobjdump(compiled, folder, option) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _loops(sass: str) -> list[list[str]]:
    """The instructions of each innermost loop: from a branch's target to the branch that leads back to it."""
    instructions = {int(at, 16): text for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)}
    back = []
    for at, text in instructions.items():
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            back.append((int(target[1], 16), at))
    inner = [a for a in back if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in back)]
    return [[text for at, text in instructions.items() if start <= at <= stop] for start, stop in inner]


@pytest.mark.parametrize(("cc", "D"), [(80, 64), (80, 128), (100, 128)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_and_fits(compile_kernel, kernel, cc, D):
    assert 0 < compile_kernel(kernel, cc, D).metadata.shared <= SHARED[cc]


@pytest.mark.parametrize(
    ("kernel", "cc", "D", "dtype", "gathers"),
    [
        ("forward_kernel", 80, 256, BF16, False),
        ("backward_queries_kernel", 90, 256, BF16, True),
        ("backward_keys_kernel", 90, 256, BF16, True),
        ("backward_queries_kernel", 86, 128, BF16, False),
        ("backward_keys_kernel", 120, 256, BF16, True),
        ("forward_kernel", 90, 17, torch.float16, True),
        ("forward_kernel", 86, 128, FP32, False),
    ],
)
def test_other_shapes_fit(compile_kernel, kernel, cc, D, dtype, gathers):
    assert 0 < compile_kernel(kernel, cc, D, dtype, gathers).metadata.shared <= SHARED[cc]


@pytest.mark.parametrize(
    ("kernel", "D", "gathers"),
    [(kernel, D, True) for kernel in KERNELS for D in (64, 128)]
    + [("forward_kernel", 128, False), ("backward_queries_kernel", 128, False)],
)
def test_no_loop_spills_on_an_h100(compile_kernel, tmp_path, kernel, D, gathers):
    """Its loops feed tensor cores and go to no local memory; at 128 the forward has none at all."""
    compiled = compile_kernel(kernel, 90, D, BF16, gathers)
    assert 0 < compiled.metadata.shared <= SHARED[90]
    loops = [x for x in _loops(_cuobjdump(compiled, tmp_path, "-sass")) if any("GMMA" in text for text in x)]
    assert len(loops) == (3 if kernel == "backward_keys_kernel" else 2)
    for loop in loops:
        assert not [text for text in loop if re.search(r"\b(LDL|STL)\b", text)]
    if kernel == "forward_kernel" and D == 128:
        assert re.search(r"STACK:0\b", _cuobjdump(compiled, tmp_path, "-res-usage"))
