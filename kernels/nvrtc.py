"""CUDA C++ kernels compiled at run time, without a CUDA toolkit: NVRTC comes with torch, and so does cuda-bindings.

Compiling needs no GPU. cuda.bindings is used as it is, without cuda-core: the log of ptxas (registers, spills) comes
from there anyway, and launches with arguments packed ahead are cheaper (cuda_driver.py).
"""

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dmabench.kernels.cuda_driver import Kernel

try:
    from cuda.bindings import nvrtc
except ImportError:  # not Linux, or a torch without CUDA
    nvrtc = None

Defines = Mapping[str, str | int]
_OPTIONS = ("-std=c++17", "--ptxas-options=-v", "--device-as-default-execution-space")
"""CUDA 13.0 takes a generic lambda for a host function without the last."""


class CompileError(Exception):
    """NVRTC refused the source; the message is its log."""


@dataclass(frozen=True)
class Compiled:
    cubin: bytes
    log: str
    """What NVRTC and ptxas said; `resources` reads registers and spills from it."""


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel: registers a thread; bytes a thread of stack and of spilled registers."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def missing(device: str) -> str | None:
    """Why kernels compiled here cannot run on `device` ("cpu" or "cuda"), as a sentence, or None."""
    return "CUDA C++ kernels need a CUDA device" if device != "cuda" else _missing_compiler()


@cache
def _missing_compiler() -> str | None:
    if nvrtc is None:
        return "CUDA C++ kernels need the package cuda-bindings, which is not installed"
    try:
        _version()
    except Exception as error:  # cuda.bindings raises its own kinds where it finds no library
        return f"CUDA C++ kernels need NVRTC, which was not found ({type(error).__name__}: {error})"
    return None


@cache
def _version() -> tuple[int, int]:
    """The version of NVRTC: (major, minor)."""
    return _nvrtc("nvrtcVersion")


def compile_source(source: Path, arch: str, defines: Defines | None = None) -> Compiled:
    """Compile a .cu file to a cubin, or take it from the cache on disk. Needs no GPU.

    Args:
        source: its `#include "..."` are found beside the including file. Kernels are `extern "C" __global__`.
        arch: such as "sm_80", or "sm_90a" for wgmma and TMA.
        defines: preprocessor macros.

    Raises:
        CompileError: with NVRTC's log.
    """
    options = [f"--gpu-architecture={arch}", *_OPTIONS, f"--include-path={source.parent}"]
    options += [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    cached = _cached(source, options)
    found = _read(cached)
    if found is None:
        found = _compile(source, options)
        _write(cached, found)
    return found


def _compile(source: Path, options: list[str]) -> Compiled:
    program = _nvrtc("nvrtcCreateProgram", source.read_bytes(), source.name.encode(), 0, [], [])
    try:
        arguments = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        log = _text(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"{source.name} with {' '.join(options)}: {status.name}\n{log}")
        return Compiled(_text(program, "nvrtcGetCUBIN"), log)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(program: Any, call: str) -> bytes:
    size = _nvrtc(f"{call}Size", program)
    content = b" " * (size + 1)  # cuda.bindings writes into the bytes: never into Python's shared one of length 1
    _nvrtc(call, program, content)
    return content[:size]


def _nvrtc(call: str, *arguments: Any) -> Any:
    status, *values = getattr(nvrtc, call)(*arguments)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"{call}: {status.name}")
    return values[0] if len(values) == 1 else tuple(values) or None


_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def resources(log: str) -> dict[str, Resources]:
    """Registers and spills of each kernel, by name, from `Compiled.log`."""
    return {
        m["name"]: Resources(int(m["registers"]), int(m["stack"]), int(m["stores"]), int(m["loads"]))
        for m in _KERNEL.finditer(log)
    }


def _cached(source: Path, options: list[str]) -> Path:
    """Where the outcome is kept: a name made of everything that it depends on."""
    digest = hashlib.sha256(repr((_version(), [o for o in options if not o.startswith("--include-path")])).encode())
    for content in _with_includes(source.resolve(), {}).values():
        digest.update(hashlib.sha256(content).digest())
    root = os.environ.get("DMABENCH_CACHE") or os.path.expanduser("~/.cache/dmabench")
    return Path(root) / "cubin" / f"{source.stem}-{digest.hexdigest()[:32]}"


def _with_includes(path: Path, found: dict[Path, bytes]) -> dict[Path, bytes]:
    """The file and all that it includes by name, each once."""
    if path not in found and path.is_file():
        found[path] = path.read_bytes()
        for name in re.findall(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', found[path], re.MULTILINE):
            _with_includes((path.parent / name.decode()).resolve(), found)
    return found


def _read(path: Path) -> Compiled | None:
    """None if it is absent, unreadable or damaged."""
    try:
        checksum, size, content = path.read_bytes().split(b"\n", 2)
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return None
        return Compiled(content[int(size) :], content[: int(size)].decode())
    except (OSError, ValueError):
        return None


def _write(path: Path, compiled: Compiled) -> None:
    """Whole or not at all: several processes may compile the same. A cache that cannot be written is no error."""
    log = compiled.log.encode()
    content = log + compiled.cubin
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n%d\n" % len(log) + content)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@cache
def architecture(device: int) -> str:
    """What to compile for a CUDA device; from Hopper on with the features of exactly that architecture."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def kernel(source: Path, name: str, defines: Defines | None = None) -> Kernel:
    """The kernel `name` of a .cu file on torch's current device, compiled and loaded the first time."""
    key = (torch.cuda.current_device(), source, name, tuple(sorted((defines or {}).items())))
    found = _loaded.get(key)
    if found is None:
        with _loading:
            found = _loaded.get(key)
            if found is None:
                compiled = compile_source(source, architecture(key[0]), defines)
                found = _loaded[key] = Kernel(compiled.cubin, name, key[0])
    return found


_loaded: dict[Any, Kernel] = {}
_loading = threading.Lock()
