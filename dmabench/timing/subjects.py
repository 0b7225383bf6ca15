"""What is timed for a cell: the whole region and its parts, and a plain call for the gate. Runs in the worker."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmabench.gates.numeric import Verdict
from dmabench.gates.of_shape import Gates
from dmabench.kernels import Backend, Plan, Problem, Unsupported, importance
from dmabench.workload.attentions import problem_of
from dmabench.workload.cells import Cell
from dmabench.workload.inputs import Inputs


@dataclass(frozen=True)
class Call:
    """A backend bound to one shape and, for dma, one delta and plan: what the gate checks and the clock times."""

    backend: Backend
    cell: Cell
    scale: float

    @property
    def problem(self) -> Problem:
        return problem_of(self.cell)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, delta: Tensor | None, plan: Plan | None) -> Tensor:
        """The output [B, H, T, D]."""
        if self.backend.function == "dma":
            return self.backend.attend(q, k, v, delta=delta, plan=plan, scale=self.scale)[0]
        if self.backend.function == "swa":
            return self.backend.attend(q, k, v, window=self.cell.window, scale=self.scale)
        return self.backend.attend(q, k, v, scale=self.scale)


class Timed:
    """Something with regions to time. `ready` before and `release` after; only one is ready at a time."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._state: Any = None

    def capture(self) -> None:
        """From now on `region` is the replay of a CUDA graph of itself: no launch is paid for but the graph's.

        Raises:
            Unsupported: the backend does what a graph cannot hold, such as waiting for the device.
        """
        # Autograd runs a backward on the stream of its forward, which is made here for one: so this stream is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.ready()
            expected = self.region()  # compiles, and warms what allocates once
            self.ready()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                found = self.region()
        except Exception as error:
            raise Unsupported(f"cannot be captured in a CUDA graph: {str(error).splitlines()[0]}") from error
        graph.replay()
        if not _alike(found, expected):
            raise RuntimeError("the replay of a CUDA graph gives another result than the call")
        self._graph = graph

    def ready(self) -> None:
        """Do what the region builds on but does not contain."""

    def release(self) -> None:
        """Let go of what `ready` made; a graph reads it as long as it lives."""
        if self._graph is None:
            self._state = None

    def region(self) -> Any:
        """The whole pass, as one region."""
        return self._graph.replay() if self._graph is not None else self.call_region()

    def call_region(self) -> Any:
        """The region itself, graph or no graph."""
        raise NotImplementedError

    def parts(self) -> dict[str, Callable[[], Any]]:
        """The region in parts, by row field, where it has any."""
        return {}


def _alike(found: Any, expected: Any) -> bool:
    """Whether an output, or each of some gradients, is the other up to the order of its sums; None equals None."""
    if isinstance(expected, Tensor):
        found, expected = [found], [expected]
    for one, other in zip(found, expected, strict=True):
        if one is not None and not (one - other).float().abs().max() <= 0.02 * other.float().abs().max():
            return False
    return True


class Subject(Timed):
    """The timed regions of one cell of dma, dense or swa at the level of its kernel, forward or backward."""

    def __init__(self, call: Call, inputs: Inputs):
        super().__init__()
        self.call, self.inputs = call, inputs
        self.pass_ = call.cell.shape.pass_
        self.is_dma = call.backend.function == "dma"

    def ready(self) -> None:
        """The forward of a backward, else nothing."""
        if self.pass_ == "bwd" and self._graph is None:
            self._state = self._forward(self._leaves())

    def call_region(self) -> Any:
        """Forward: importance, plan and kernel. Backward: the kernel alone, on the forward's plan. fwd+bwd: all of it,
        importance and its gradients included."""
        if self.pass_ == "bwd":
            leaves, out = self._state
            return torch.autograd.grad(out, leaves, self.inputs.dout, retain_graph=True)
        if self.pass_ == "fwd+bwd":
            return self._forward_and_backward()
        with torch.no_grad():
            if self.is_dma:
                self._importance()
                return self._attend(self._plan())
            return self._attend(None)

    def parts(self) -> dict[str, Callable[[], Any]]:
        """The kernel runs on a plan made beforehand."""
        if self.pass_ != "fwd" or not self.is_dma:
            return {}
        plan = self._plan()
        return {
            "importance_ms": self._importance,
            "plan_ms": self._plan,
            "kernel_ms": lambda: self._attend(plan),
        }

    def plan(self) -> Plan | None:
        """A fresh plan of the cell's delta, as the gate checks with; None for functions that have none."""
        cell = self.call.cell
        return self.inputs.plan(cell.delta, cell.window) if cell.delta and cell.window else None

    def check(self, gates: Gates, again: bool = False) -> Verdict:
        """The gate's verdict; `again` after timing leaves out the counting of keys."""
        cell, ask = self.call.cell, gates.kernel.recheck if again else gates.kernel.check
        return ask(self.call, cell.function, cell.window, cell.delta, self.plan())

    @property
    def tensors(self) -> list[Tensor]:
        """What the pass is given, to be counted in its peak memory."""
        given = [self.inputs.q, self.inputs.k, self.inputs.v]
        return given if self.pass_ == "fwd" else [*given, self.inputs.dout]

    def _leaves(self) -> list[Tensor]:
        inputs = self.inputs
        tensors = [inputs.q, inputs.k, inputs.v]
        if self.is_dma:
            tensors.append(self._delta())
        return [x.detach().requires_grad_() for x in tensors]

    def _delta(self) -> Tensor:
        cell = self.call.cell
        assert cell.delta is not None and cell.window is not None
        return self.inputs.delta(cell.delta, cell.window)

    def _importance(self) -> Tensor:
        with torch.no_grad():
            return importance(self.inputs.v, self.inputs.weight, self.inputs.gate)

    def _plan(self) -> Plan:
        cell = self.call.cell
        assert cell.delta is not None and cell.window is not None
        plan = self.inputs.plan(cell.delta, cell.window)
        self.call.backend.prepare(plan=plan, delta=self._delta(), problem=self.call.problem)
        return plan

    def _attend(self, plan: Plan | None) -> Tensor:
        with torch.no_grad():
            delta = self._delta() if self.is_dma else None
            return self.call(self.inputs.q, self.inputs.k, self.inputs.v, delta, plan)

    def _forward(self, leaves: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        q, k, v = leaves[:3]
        delta = leaves[3] if self.is_dma else None
        return leaves, self.call(q, k, v, delta, self._plan() if self.is_dma else None)

    def _forward_and_backward(self) -> Any:
        leaves = self._leaves()
        outputs, grads = [], [self.inputs.dout]
        if self.is_dma:
            # delta is the named one; the importance computed from v joins the region with a gradient of its own, so
            # that its forward and backward are paid for. Its value is not used: the distribution is the axis.
            weight, gate = (x.detach().requires_grad_() for x in (self.inputs.weight, self.inputs.gate))
            outputs = [importance(leaves[2], weight, gate)]
            grads.append(self._delta())
        _, out = self._forward(leaves)
        wanted = leaves + ([weight, gate] if self.is_dma else [])
        return torch.autograd.grad([out, *outputs], wanted, grads)
