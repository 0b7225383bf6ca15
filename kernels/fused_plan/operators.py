"""One launch of a plan's kernel (tests put a CPU in its place), and what makes torch.compile see such calls."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from dmabench.kernels import nvrtc
from dmabench.kernels.cuda_driver import Kernel

FOLDER = Path(__file__).parent
_kernels: dict[tuple[str, int], Kernel] = {}


def launch(source: str, name: str, grid: tuple[int, int], block: int, *arguments: Any) -> None:
    """Start kernel `name` of the file `source` in this folder on the current device."""
    key = (name, torch.cuda.current_device())
    kernel = _kernels.get(key)
    if kernel is None:
        kernel = _kernels[key] = nvrtc.kernel(FOLDER / source, name)
    kernel.launch(grid, block, 0, *arguments)


def as_operator(name: str, empty: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the custom operator `dmabench::name`, which is called where torch.compile traces.

    Elsewhere the function itself is called: going through the dispatcher would cost more than a launch.

    Args:
        empty: the outputs, unwritten, from the same arguments.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        operator = torch.library.custom_op(f"dmabench::{name}", function, mutates_args=())
        operator.register_fake(empty)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return operator(*arguments) if torch.compiler.is_compiling() else function(*arguments)

        return call

    return decorate
