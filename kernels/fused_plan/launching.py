"""One launch of a plan's kernel; tests put a CPU in its place."""

from pathlib import Path
from typing import Any

import torch

from dmabench.kernels import nvrtc
from dmabench.kernels.cuda_driver import Kernel

FOLDER = Path(__file__).parent
_kernels: dict[tuple[str, int, int], Kernel] = {}


def launch(source: str, name: str, grid: tuple[int, int], block: int, *arguments: Any, chunk: int = 0) -> None:
    """Start kernel `name` of the file `source` in this folder, on the device of the first argument, a tensor.

    Args:
        chunk: positions of a chunk, for kernels that know of chunks.
    """
    device = arguments[0].get_device()
    kernel = _kernels.get((name, chunk, device))
    if kernel is not None and device == torch.cuda.current_device():
        kernel.launch(grid, block, 0, *arguments)
        return
    with torch.cuda.device(device):
        if kernel is None:  # nvrtc.kernel keeps it too, but finds it by path and options, which take longer to compare
            kernel = _kernels[name, chunk, device] = nvrtc.kernel(FOLDER / source, name, defines(chunk))
        kernel.launch(grid, block, 0, *arguments)


def defines(chunk: int) -> dict[str, int]:
    """What a source is compiled with."""
    return {"CHUNK_KEYS": chunk} if chunk else {}
