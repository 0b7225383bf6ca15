"""Loading and launching CUDA kernels through the driver, on torch's device, context and stream."""

import ctypes
import struct
import threading
from typing import Any

import numpy
import torch

try:
    from cuda.bindings import driver
except ImportError:  # not Linux, or a torch without CUDA
    driver = None

_SHARED_WITHOUT_ASKING = 48 << 10


class DriverError(Exception):
    """A call of the CUDA driver failed; the message names the call and the error."""


class Kernel:
    """One kernel, loaded on one device."""

    def __init__(self, cubin: bytes, name: str, device: int) -> None:
        self.name, self.device = name, device
        torch.cuda.init()
        self._context = _driver("cuDevicePrimaryCtxRetain", _driver("cuDeviceGet", device))
        _driver("cuCtxSetCurrent", self._context)  # the device is torch's current one, so this is where torch is too
        self._module = _driver("cuModuleLoadData", cubin)
        self._function = _driver("cuModuleGetFunction", self._module, name.encode())
        self._shared = _SHARED_WITHOUT_ASKING
        self._arguments = threading.local()  # the autograd engine launches from its own threads

    def launch(self, grid: tuple[int, ...], block: int, shared_bytes: int, *arguments: Any) -> None:
        """Start the kernel on torch's current stream. Nothing is allocated on the device or waited for, so a CUDA graph
        can capture it. An empty grid starts nothing.

        Args:
            grid: blocks, up to three numbers.
            block: threads a block.
            shared_bytes: dynamic shared memory; more than 48 KiB is asked for from the driver.
            arguments: tensors (their address; None is a null pointer), Python floats (float32) and ints (int32), and
                numpy or ctypes scalars, which say their width.

        Raises:
            DriverError: the launch was refused.
        """
        if 0 in grid:
            return
        if shared_bytes > self._shared:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _driver("cuFuncSetAttribute", self._function, attribute, shared_bytes)
            self._shared = shared_bytes
        try:
            packed = self._arguments.packed
        except AttributeError:
            packed = self._arguments.packed = PackedArguments(arguments)
        pointers = packed.fill(arguments)
        x, y, z = (*grid, 1, 1)[:3]
        stream = torch._C._cuda_getCurrentRawStream(self.device)  # current_stream makes an object, which costs a launch
        call = (self._function, x, y, z, block, 1, 1, shared_bytes, stream, pointers, 0)
        (status,) = driver.cuLaunchKernel(*call)
        if status == driver.CUresult.CUDA_ERROR_INVALID_CONTEXT:  # a thread in which torch has not been yet
            _driver("cuCtxSetCurrent", self._context)
            (status,) = driver.cuLaunchKernel(*call)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise DriverError(f"{self.name}: grid {grid}, {block} threads, {shared_bytes} bytes shared: {status.name}")


class PackedArguments:
    """The arguments of a kernel as the driver takes them: an array of addresses of values, 8 bytes a value.

    The types of the arguments must stay those given here, except that a pointer may be a tensor or None.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        formats = [_format(x) for x in arguments]
        self._pack = struct.Struct("=" + "".join(formats)).pack_into
        self._tensors = [i for i, x in enumerate(arguments) if x is None or isinstance(x, torch.Tensor)]
        self._scalars = [i for i, x in enumerate(arguments) if isinstance(x, ctypes._SimpleCData)]
        self._values = ctypes.create_string_buffer(8 * max(1, len(arguments)))
        first = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * len(arguments))(*range(first, first + 8 * len(arguments), 8))
        self.address = ctypes.addressof(self._pointers)

    def fill(self, arguments: tuple[Any, ...]) -> int:
        """Write the values of this launch; returns the address of the array of pointers."""
        values = list(arguments)
        for i in self._tensors:
            values[i] = 0 if values[i] is None else values[i].data_ptr()
        for i in self._scalars:
            values[i] = values[i].value
        self._pack(self._values, 0, *values)
        return self.address

    def values(self) -> bytes:
        return self._values.raw


_FORMATS = {
    ctypes.c_int32: "i4x",
    ctypes.c_uint32: "I4x",
    ctypes.c_int64: "q",
    ctypes.c_uint64: "Q",
    ctypes.c_float: "f4x",
    numpy.int32: "i4x",
    numpy.uint32: "I4x",
    numpy.int64: "q",
    numpy.uint64: "Q",
    numpy.float32: "f4x",
    int: "i4x",
    float: "f4x",
    type(None): "Q",
}


def _format(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return "Q"
    try:
        return _FORMATS[type(argument)]
    except KeyError:
        raise TypeError(
            f"a kernel argument is a tensor, None, a float, an int, or a numpy or ctypes scalar of 32 or 64 bits, "
            f"not {type(argument).__name__}"
        ) from None


def _driver(call: str, *arguments: Any) -> Any:
    status, *values = getattr(driver, call)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DriverError(f"{call}: {status.name}")
    return values[0] if values else None
