"""Run the project's CUDA C++ on the CPU: compiled with the C++ compiler, called over CPU tensors.

`cuda_on_cpu.h` says how threads are emulated and what that can and cannot check.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

HERE = Path(__file__).resolve().parent
# Sources look at memory through pointers of many types, and kernels leave by longjmp, which a fortified libc refuses.
_FLAGS = [
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-shared",
    "-w",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
]


class EmulatorError(Exception):
    """The source does not compile, or a launch went wrong: threads that wait for ever, a failed assert, and so on."""


def missing() -> str | None:
    """Why CUDA sources cannot be emulated here, as a sentence, or None."""
    if sys.platform != "linux":
        return "the emulator of CUDA needs Linux"
    return None if _compiler() else "the emulator of CUDA needs a C++ compiler, g++ or c++"


def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def emulated(
    source: Path, defines: Mapping[str, str | int], folder: Path, kernels: Iterable[str] | None = None
) -> "Emulated":
    """Compile a .cu file, or take it from `folder`, where it stays under a name made of all that it depends on.

    Args:
        source: its `#include "..."` are found beside the including file. Kernels are `extern "C" __global__`.
        defines: preprocessor macros, as for NVRTC.
        folder: of this session of tests.
        kernels: names of the kernels; by default those found in the text.

    Raises:
        EmulatorError: with what the compiler said.
    """
    files = _with_includes(source.resolve(), {})
    if kernels is None:
        kernels = [name for text in files.values() for name in _kernel_names(text)]
    if not kernels:
        raise EmulatorError(f"{source.name} has no kernels")
    unit = "".join(
        [
            *(f"#define {name} {value}\n" for name, value in sorted(defines.items())),
            '#include "cuda_on_cpu.h"\n',
            # Not visible outside, so that all shared memory ends up in one section.
            f'namespace {{\n#include "{source.resolve()}"\n}}\n',
            *(_ENTRY.format(name=name) for name in kernels),
        ]
    )
    compiler = _compiler()
    digest = hashlib.sha256(repr((unit, _FLAGS, compiler)).encode())
    for text in [*files.values(), *(path.read_text() for path in sorted(HERE.glob("*.h")))]:
        digest.update(hashlib.sha256(text.encode()).digest())
    library = folder / f"{source.stem}-{digest.hexdigest()[:32]}.so"
    if not library.exists():
        unit_path = library.with_suffix(".cpp")
        unit_path.write_text(unit)
        command = [str(compiler), *_FLAGS, f"-I{HERE}", str(unit_path), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise EmulatorError(f"{source.name} does not compile: {' '.join(command)}\n{done.stderr[-8000:]}")
    return Emulated(library)


_ENTRY = """
extern "C" const char* emulate_{name}(const cuda_on_cpu::Launch& launch) {{
    return cuda_on_cpu::Entry<{name}>::launch(launch);
}}
"""


def _with_includes(path: Path, found: dict[Path, str]) -> dict[Path, str]:
    """The file and all that it includes by name, each once."""
    if path not in found and path.is_file():
        found[path] = path.read_text()
        for name in re.findall(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', found[path], re.MULTILINE):
            _with_includes((path.parent / name).resolve(), found)
    return found


def _kernel_names(text: str) -> list[str]:
    """What `extern "C" __global__ void __launch_bounds__(...) name(` names. Bounds may have brackets one level deep."""
    bounds = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
    return re.findall(rf'extern\s+"C"\s+__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(', text)


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_size_t),
        ("reversed", ctypes.c_int),
        ("count", ctypes.c_int),
        ("sizes", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
    )


class Emulated:
    """The kernels of one source."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        shared_bytes: int,
        *arguments: Any,
        reverse: bool = False,
    ) -> None:
        """Run the kernel to its end. An empty grid runs nothing.

        Args:
            name: of the kernel.
            grid, block: up to three numbers.
            shared_bytes: dynamic shared memory. It starts as NaN (all bits set), as `__shared__` variables do.
            arguments: CPU tensors (their address; None is a null pointer), Python floats (float32), numpy and ctypes
                scalars; structures as ctypes structures or bytes.
            reverse: let the threads of a block take their turns from the last to the first: a result that differs then
                lacks a barrier.

        Raises:
            EmulatorError: number or size of the arguments, threads that wait for ever, writing beyond shared memory.
            TypeError: an argument of another type, or on another device.
        """
        try:
            entry = getattr(self._library, f"emulate_{name}")
        except AttributeError:
            raise EmulatorError(f"no kernel is named {name}") from None
        entry.restype = ctypes.c_char_p
        values = [_value(argument) for argument in arguments]
        sizes = (ctypes.c_size_t * max(1, len(values)))(*map(ctypes.sizeof, values))
        addresses = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        launch = _Launch(
            _three(grid),
            _three(block),
            shared_bytes,
            reverse,
            len(values),
            ctypes.addressof(sizes),
            ctypes.addressof(addresses),
        )
        failure = entry(ctypes.byref(launch))
        if failure is not None:
            raise EmulatorError(f"{name}: {failure.decode()}")


def _three(size: int | tuple[int, ...]) -> Any:
    numbers = (size,) if isinstance(size, int) else tuple(size)
    return (ctypes.c_uint * 3)(*numbers, *[1] * (3 - len(numbers)))


def _value(argument: Any) -> Any:
    """The argument as a ctypes object that holds its value."""
    if isinstance(argument, torch.Tensor):
        if argument.device.type != "cpu":
            raise TypeError(f"the emulator takes CPU tensors, not {argument.device}")
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, (numpy.generic, bytes)):
        content = argument if isinstance(argument, bytes) else argument.tobytes()
        return (ctypes.c_char * len(content)).from_buffer_copy(content)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, (ctypes._SimpleCData, ctypes.Structure)):
        return argument
    raise TypeError(
        f"a kernel argument is a tensor, None, a float, bytes, or a numpy or ctypes value, not {type(argument)}"
    )
