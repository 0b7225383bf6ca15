"""Training steps replayed from CUDA graphs: hundreds of launches become one, and the host has time for other things.

A step of a small model launches some 500 kernels, each shorter than its launch. Steps of one shape differ in nothing
but their numbers, so the third of a shape is captured, and from then on only its inputs are copied and the graph is
launched. The kernels and their order are those of the step as it was called, so the results are too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmabench.tasks.batches import Part

CALLS_FIRST = 2
"""Steps of a shape that are called before it is captured: kernels are compiled and tuned, and the optimizer begins."""
MOST = 12
"""Shapes that are kept as graphs; further ones are called."""
TOLERANCE = 0.02
"""Relative; the loss of a step replayed for the first time against a forward of the same batch."""

Step = Callable[[Sequence[Part], Tensor], Tensor]
"""Parts and the number of labels, float32 [], both on the device, to the loss, float32 []; weights are then changed."""


class Graph(Protocol):
    """As torch.cuda.CUDAGraph."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]
"""Records what a function does, without doing it: the graph, and where each replay leaves the function's result."""


@dataclass
class _Captured:
    graph: Graph
    parts: list[Part]
    labels: Tensor
    loss: Tensor


class Replay:
    """Steps by their batches: called the first times, replayed from then on."""

    def __init__(
        self, step: Step, forward: Step, device: torch.device, capture: Capture | None = None, most: int = MOST
    ) -> None:
        """
        Args:
            forward: the loss alone, without a change of weights: what the first replay is compared with.
            capture: for tests; default: torch's.
        """
        self.step, self.forward, self.device, self.most = step, forward, device, most
        self.capture = capture or _TorchCapture()
        self.replayed = 0
        """Steps."""
        self.failed: str | None = None
        """Why no step is captured any more: what an attention does that a graph cannot hold."""
        self._calls: dict[tuple[int, ...], int] = {}
        self._graphs: dict[tuple[int, ...], _Captured] = {}

    def __call__(self, parts: Sequence[Part], labels: int) -> Tensor:
        """Does a step; returns its loss, float32 [], on the device, which is not waited for.

        Raises:
            RuntimeError: a replay that computes something else than the step.
        """
        key = tuple(size for part in parts for size in (*part.input_ids.shape, len(part.index)))
        known = self._graphs.get(key)
        if known is not None:
            return self._replay(known, parts, labels)
        on_device = [part.to(self.device) for part in parts]
        count = torch.full((), float(labels), device=self.device)
        self._calls[key] = self._calls.get(key, 0) + 1
        if self.failed or self._calls[key] <= CALLS_FIRST or len(self._graphs) >= self.most:
            return self.step(on_device, count)
        try:
            self._graphs[key] = captured = _Captured(*self._captured(on_device, count))
        except Exception as error:  # whatever a kernel does that cannot be captured: the step is called instead
            self.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return self.step(on_device, count)
        with torch.no_grad():
            expected = self.forward(on_device, count).item()
        loss = self._replay(captured, on_device, labels)
        if abs(loss.item() - expected) > TOLERANCE * max(1.0, abs(expected)):
            raise RuntimeError(f"a training step replayed from a CUDA graph has the loss {loss.item()}, not {expected}")
        return loss

    def _captured(self, parts: list[Part], labels: Tensor) -> tuple[Graph, list[Part], Tensor, Tensor]:
        static = [Part(*(x.clone() for x in (part.input_ids, part.index, part.targets))) for part in parts]
        count = labels.clone()
        graph, loss = self.capture(lambda: self.step(static, count))
        return graph, static, count, loss

    def _replay(self, captured: _Captured, parts: Sequence[Part], labels: int) -> Tensor:
        for held, part in zip(captured.parts, parts, strict=True):
            for name in ("input_ids", "index", "targets"):
                getattr(held, name).copy_(getattr(part, name), non_blocking=True)
        captured.labels.fill_(float(labels))
        captured.graph.replay()
        self.replayed += 1
        return captured.loss.clone()


class _TorchCapture:
    """CUDA graphs that share one pool of memory, since no two of them run at once and none reads what another left."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The thread that makes batches pins memory meanwhile, which only this mode allows.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            loss = call()
        self.pool = self.pool or graph.pool()
        return graph, loss
