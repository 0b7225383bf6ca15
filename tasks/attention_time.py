"""How much of a training step is attention: stamps where it begins and ends, in the forward and in the backward."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Stamp = Any
"""A CUDA event, or seconds."""


class Stopwatch:
    """Points in time on a device: on CUDA in its stream, so that nobody waits; elsewhere the host's clock."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def now(self) -> Stamp:
        """This point."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def ms(self, start: Stamp, end: Stamp) -> float:
        """Milliseconds between two points that the device has passed (`wait`)."""
        return start.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - start)

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class AttentionTime:
    """Stamps of every call of every layer's attention."""

    watch: Stopwatch
    calls: list[dict[str, Stamp]] = field(default_factory=list)

    def ms(self) -> float:
        """Milliseconds of all calls, forward (again, where activations are recomputed) and backward."""
        self.watch.wait()
        pairs = (("begin", "end"), ("backward begin", "backward end"))
        return sum(
            self.watch.ms(call[start], call[end])
            for call in self.calls
            for start, end in pairs
            if start in call and end in call
        )


@contextmanager
def attention_time(model: Any, watch: Stopwatch) -> Iterator[AttentionTime]:
    """Within, every layer's attention is stamped: from queries, keys and values (for dma importance and plan, for nsa
    summaries and gates, for mla keys and values out of the latent) to its output. Projections are outside.

    Args:
        model: a DmabenchForCausalLM that is not compiled.
    """
    found = AttentionTime(watch)
    modules = [layer.self_attn for layer in model.model.layers]
    for module in modules:
        module.first = _stamped(module.first, found)  # this object's alone, in front of its class's
    try:
        yield found
    finally:
        for module in modules:
            del module.first


def _stamped(first: Callable[..., Tensor], found: AttentionTime) -> Callable[..., Tensor]:
    def call(*given: Any, **more: Any) -> Tensor:
        stamps: dict[str, Stamp] = {}
        found.calls.append(stamps)

        def stamp(name: str) -> None:
            stamps[name] = found.watch.now()

        tensors = [x for x in given if isinstance(x, Tensor)]
        marked = iter(_Mark.apply(stamp, "begin", "backward end", *tensors))
        out = first(*(next(marked) if isinstance(x, Tensor) else x for x in given), **more)
        return _Mark.apply(stamp, "end", "backward begin", out)[0]

    return call


class _Mark(torch.autograd.Function):
    """Tensors as they are. The backward of all that follows in the forward comes before the backward of this."""

    @staticmethod
    def forward(ctx: Any, stamp: Callable[[str], None], name: str, back: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stamp, ctx.back = stamp, back
        ctx.set_materialize_grads(False)
        stamp(name)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        ctx.stamp(ctx.back)
        return None, None, None, *gradients
