"""The Triton kernels compiled for cards that are not there: that they compile, fit, and do not spill where it counts.

What is compiled is what the operators launch: the launches are recorded, with their arguments, block sizes and options.
"""

import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dmabench.kernels import Plan, dma_triton, make_plan
from dmabench.kernels.dma_triton import ahead, configs, ops
from dmabench.kernels.dma_triton.candidates import candidates
from dmabench.kernels.dma_triton.tuned import KERNELS as FIELDS

SHARED = ahead.SHARED_MEMORY
KERNELS = ("forward_kernel", "backward_queries_kernel", "backward_keys_kernel")
BF16, FP32 = torch.bfloat16, torch.float32
_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
_TYPES[torch.int64] = "*i64"


class _Recorder:
    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.calls.append((arguments, named))


@pytest.fixture
def compile_kernel(monkeypatch):
    """compile_kernel(kernel, cc, D, dtype, gathers) -> what triton.compile returns."""

    def run(kernel, cc, D, dtype=BF16, gathers=True, signature_alone=False, keys=None):
        recorder = _Recorder()
        chosen = configs.choose(D, dtype, SHARED[cc], divmod(cc, 10))
        with monkeypatch.context() as patched:
            patched.setattr(Plan, "gathers", gathers)
            patched.setattr(configs, "_forced", replace(chosen, keys=keys or chosen.keys))
            for name in (*KERNELS, "join_kernel"):
                launcher = getattr(ops, f"launch_{name.removesuffix('_kernel')}")
                patched.setattr(launcher, "kernel", recorder if name == kernel else _Recorder())
            q, k, v = (torch.empty(1, heads, 256, D, dtype=dtype) for heads in (4, 2, 2))
            delta = torch.rand(1, 2, 256)
            structures = dma_triton.structures(make_plan(delta, 100), delta, True, D, dtype, 2)
            out, _, relative_lse = ops.forward(q, k, v, delta, *structures, 0.1)
            ops.backward(out, q, k, v, delta, *structures, out, relative_lse, 0.1)
        ((arguments, named),) = recorder.calls
        if signature_alone:
            return _launched(getattr(ops, kernel), arguments, named)
        return _compile(getattr(ops, kernel), arguments, named, cc)

    return run


def _compile(kernel, arguments, named, cc):
    """As triton's launcher would for these arguments."""
    signature, constants, hints, options = _launched(kernel, arguments, named)
    source = ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options)


def _launched(kernel, arguments, named):
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
    return signature, constants, hints, options


def _cuobjdump(compiled, folder, option) -> str:
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
    """Its loops feed tensor cores and go to no local memory; at 128 the forward has next to none outside of them."""
    compiled = compile_kernel(kernel, 90, D, BF16, gathers)
    loops = ahead.product_loops(_cuobjdump(compiled, tmp_path, "-sass"))
    assert len(loops) == (3 if kernel == "backward_keys_kernel" else 2)
    assert all(any("GMMA" in text for text in loop) for loop in loops)
    taken = ahead.taken(compiled)
    assert 0 < taken.shared <= SHARED[90] and taken.spills == 0
    if kernel == "forward_kernel" and D == 128:
        assert taken.stack <= 16


WIDE = configs.Config(32, 128, 8, 2, even=True)


@pytest.mark.parametrize(("field", "keys"), [*((field, None) for field in FIELDS), ("keys", WIDE)])
def test_what_is_compiled_ahead_is_what_is_launched(compile_kernel, field, keys):
    kernel = dict(zip(FIELDS, KERNELS, strict=True))[field]
    *launched, options = compile_kernel(kernel, 90, 128, signature_alone=True, keys=keys)
    config = keys or getattr(configs.choose(128, BF16, SHARED[90], (9, 0)), field)
    assert launched == list(ahead.signature_of(field, config, 128, BF16))
    assert options == ahead.options_of(field, config)


@pytest.mark.parametrize("cc", [80, 90])
def test_the_joining_of_shared_tiles_compiles_and_fits(compile_kernel, cc):
    taken = ahead.taken(compile_kernel("join_kernel", cc, 128, keys=WIDE))
    assert (taken.stack, taken.spills) == (0, 0) and taken.shared <= SHARED[cc]


@pytest.mark.parametrize("field", FIELDS)
def test_what_was_measured_on_hopper_neither_spills_nor_waits_for_each_product(field):
    config = getattr(configs.MEASURED[9, 0][128], field)
    taken = ahead.taken(ahead.compile_ahead(field, config, 128, BF16, 90))
    assert (taken.spills, taken.serialised) == (0, False) and taken.shared <= SHARED[90]


def test_every_candidate_is_a_configuration():
    for D in (16, 64, 128, 256):
        for field in FIELDS:
            found = candidates(field, D)
            assert len(set(found)) == len(found) > 3
            assert all(one.heads == 1 and not one.ahead for one in found) or field != "keys"


def test_loops_and_what_they_take_are_read_from_machine_code(monkeypatch):
    def loop(start, *body):
        lines = [
            f"        /*{start + 16 * n:04x}*/                   {text} ;   /* 0x */" for n, text in enumerate(body)
        ]
        return "\n".join([*lines, f"        /*{start + 16 * len(body):04x}*/    @P0 BRA 0x{start:x} ;   /* 0x */"])

    product = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
    code = "\n".join(
        [
            loop(0x100, "WARPGROUP.ARRIVE", product, product, "WARPGROUP.DEPBAR.LE gsb0, 0x0"),
            loop(0x400, "STL [R1], R2", "LDG.E R1, [R2]"),
        ]
    )
    assert [len(x) for x in ahead.product_loops(code)] == [5]

    compiled = SimpleNamespace(metadata=SimpleNamespace(shared=5), asm={"cubin": b""})

    def told(sass):
        texts = {"-sass": sass, "-res-usage": "Function k: REG:40 STACK:8 SHARED:0"}
        monkeypatch.setattr(ahead, "_disassembled", lambda option, path: texts[option])
        return ahead.taken(compiled)

    assert told(code) == ahead.Taken(40, 8, 5, 0, False)
    waited = loop(0x100, product, "WARPGROUP.DEPBAR.LE gsb0, 0x0", product, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "LDL R1")
    assert told(waited) == ahead.Taken(40, 8, 5, 1, True)
