"""Launches of Triton kernels that cost the host little."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

_MOST_KEPT = 1024


class Launcher:
    """Launches a Triton kernel, one like another before straight with what was compiled for that.

    Triton itself looks at each argument of each launch to find the compiled kernel, which takes the host several times
    as long as the launch.
    """

    def __init__(self, kernel: Any) -> None:
        """A function decorated with triton.jit, whose parameters are pointers, then numbers, then constants."""
        self.kernel = kernel
        self._compiled: dict[Any, tuple[Any, tuple]] = {}

    def __call__(
        self,
        grid: int,
        tensors: tuple[Tensor | None, ...],
        numbers: tuple[int | float, ...],
        variant: Any,
        named: Callable[[], dict[str, Any]],
    ) -> None:
        """Start the kernel on the current device and stream, which the first tensor must be on.

        Args:
            grid: programs.
            tensors, numbers: arguments, in the order of the parameters.
            variant: hashable; with it all of `named` is given, the dtypes, and which tensors are None.
            named: the constants and compiler options, called for when they are not known.
        """
        addresses = [None if x is None else x.data_ptr() for x in tensors]
        bits = 0
        for address in addresses:
            bits |= address or 0
        # Triton compiles for aligned pointers, for numbers that are 1 or multiples of 16, and for their width.
        key = (variant, numbers, tensors[0].get_device()) if tensors[0] is not None and not bits & 15 else None
        found = self._compiled.get(key)
        if found is not None:
            compiled, constants = found
            compiled[grid, 1, 1](*addresses, *numbers, *constants)
            return
        given = named()
        compiled = self.kernel[(grid,)](*tensors, *numbers, **given)
        if key is None or compiled is None:  # interpreted kernels return nothing
            return
        if len(self._compiled) >= _MOST_KEPT:
            self._compiled.clear()
        names = self.kernel.arg_names[len(tensors) + len(numbers) :]
        self._compiled[key] = compiled, tuple(given[name] for name in names)
