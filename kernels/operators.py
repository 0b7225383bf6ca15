"""Functions on tensors as operators of torch: seen whole by torch.compile, called plainly elsewhere.

Going through torch's dispatcher costs the host more than a launch does, and a short attention is as fast as its host.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmabench.kernels.registry import wants_gradient


def operator(
    name: str,
    function: Callable[..., Any],
    empty: Callable[..., Any],
    *,
    setup: Callable[..., None] | None = None,
    gradients: Callable[..., tuple] | None = None,
    mutates: Sequence[str] = (),
) -> Callable[..., Any]:
    """`function`, which torch.compile sees as the custom operator `dmabench::name`.

    Args:
        function: annotated, of positional arguments (the operator's schema is read from it).
        empty: the outputs, unwritten, from the same arguments.
        setup, gradients: (ctx, inputs, output) and (ctx, *output gradients), as for torch.library.register_autograd;
            without them it has no gradients.
        mutates: names of the arguments that are written to.
    """
    registered = torch.library.custom_op(f"dmabench::{name}", function, mutates_args=mutates)
    registered.register_fake(empty)
    if setup is None or gradients is None:
        return lambda *arguments: (registered if traced() else function)(*arguments)
    registered.register_autograd(gradients, setup_context=setup)
    differentiable = _differentiable(function, setup, gradients)

    def call(*arguments: Any) -> Any:
        if traced():
            return registered(*arguments)
        if torch.is_grad_enabled() and wants_gradient(*(x for x in arguments if isinstance(x, Tensor))):
            return differentiable.apply(*arguments)
        return function(*arguments)

    return call


def traced() -> bool:
    """Does torch record this call rather than run it?

    torch 2.11 traces the backward of an operator on fake tensors without saying that it compiles.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _differentiable(function: Callable, setup: Callable, gradients: Callable) -> type[torch.autograd.Function]:
    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return function(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup(ctx, inputs, output)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *grads):
            # An operator wants a list for an argument that is a list of tensors; a function wants None.
            return tuple(None if isinstance(x, list) else x for x in gradients(ctx, *grads))

    return Differentiable
