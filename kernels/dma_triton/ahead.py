"""The kernels compiled for a card that need not be there, and what they take: registers, shared memory, spills."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dmabench.kernels.dma_triton import configs, ops
from dmabench.kernels.dma_triton.tuned import KERNELS, Config

SHARED_MEMORY = {80: configs.AMPERE, 86: configs.CONSUMER, 89: configs.CONSUMER, 90: configs.HOPPER}
SHARED_MEMORY |= {100: configs.HOPPER, 120: configs.CONSUMER}
"""Bytes a block may take, by compute capability as one number."""
_KERNEL = dict(zip(KERNELS, ("forward_kernel", "backward_queries_kernel", "backward_keys_kernel"), strict=True))
_HALF = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
_FLOAT = ("delta", "references", "lse", "relative_lse", "lse_log2", "lses_log2", "row_sums", "ddelta", "parts")
_INT = ("evict", "keys", "full", "count", "order", "first", "last", "full_first", "full_last")


@dataclass(frozen=True)
class Taken:
    """What a compiled kernel takes of a multiprocessor."""

    registers: int
    """A thread."""
    stack: int
    """Bytes a thread; outside of loops they cost little."""
    shared: int
    """Bytes a block."""
    spills: int
    """Instructions to and from local memory in the loops that hold matrix products."""
    serialised: bool
    """Whether each of Hopper's matrix products is waited for before the next starts. ptxas does that, and says
    nothing, where it cannot follow what happens to their accumulators."""


def compile_ahead(kernel: str, config: Config, head_dim: int, dtype: torch.dtype, capability: int) -> Any:
    """A kernel as it is compiled for keys gathered by list, contiguous tensors and lengths that are multiples of 16.

    Args:
        kernel: "forward", "queries" or "keys".
        capability: compute capability as one number: 90.

    Raises:
        triton's own errors, where it cannot be compiled.
    """
    function = getattr(ops, _KERNEL[kernel])
    signature, constants, hints = signature_of(kernel, config, head_dim, dtype)
    source = ASTSource(function, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options_of(kernel, config))


def options_of(kernel: str, config: Config) -> dict[str, Any]:
    """The compiler's own."""
    names = {parameter.name for parameter in getattr(ops, _KERNEL[kernel]).params}
    return {name: value for name, value in config.options().items() if name not in names}


def signature_of(kernel: str, config: Config, head_dim: int, dtype: torch.dtype) -> tuple[dict, dict, dict]:
    """Types of parameters, values of constants, and hints (divisible by 16) by place, for triton's ASTSource."""
    known: dict[str, Any] = {
        "GATHERS": True,
        "AHEAD": config.ahead,
        "HEADS": config.heads,
        "EVEN": config.even,
        "HEAD_DIM": head_dim,
    }
    if not config.even:
        known |= {"ends": None, "parts": None}
    known |= {"BLOCK_D": configs.block_d(head_dim), **config.options()}
    types = dict.fromkeys(_HALF, {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype])
    types |= dict.fromkeys(_FLOAT, "*fp32") | dict.fromkeys(_INT, "*i32") | {"ends": "*i64"}
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(getattr(ops, _KERNEL[kernel]).params):
        name = parameter.name
        if parameter.is_constexpr or name in known:
            signature[name], constants[name] = "constexpr", known[name]
            continue
        signature[name] = types.get(name, "fp32" if name.startswith("scale") else "i32")
        if signature[name] != "fp32" and not parameter.do_not_specialize:
            hints[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, hints


def taken(compiled: Any) -> Taken:
    """Read from the machine code, with the disassembler that triton brings along."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage, sass = (_disassembled(option, path) for option in ("-res-usage", "-sass"))
    registers, stack = (int(re.search(rf"\b{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    loops = product_loops(sass)
    products = sum("HGMMA" in text for loop in loops for text in loop)
    waits = sum("WARPGROUP.DEPBAR" in text for loop in loops for text in loop)
    spills = sum(bool(re.search(r"\b(LDL|STL)\b", text)) for loop in loops for text in loop)
    return Taken(registers, stack, compiled.metadata.shared, spills, products > 0 and waits >= products)


def _disassembled(option: str, path: Path) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def product_loops(sass: str) -> list[list[str]]:
    """The instructions of each innermost loop that holds matrix products: from a branch's target to the branch that
    leads back to it."""
    instructions = {int(at, 16): text for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)}
    back = []
    for at, text in instructions.items():
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            back.append((int(target[1], 16), at))
    inner = [a for a in back if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in back)]
    loops = [[text for at, text in instructions.items() if start <= at <= stop] for start, stop in inner]
    return [loop for loop in loops if any("MMA" in text for text in loop)]
