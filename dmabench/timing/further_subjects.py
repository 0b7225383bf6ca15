"""What is timed for a cell of latent or native sparse attention, of a layer, or of decoding. Runs in the worker."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmabench.gates.numeric import Verdict
from dmabench.gates.of_shape import Gates
from dmabench.kernels import Backend, Plan, Unsupported
from dmabench.timing.subjects import Call, Subject, Timed
from dmabench.workload.attentions import Attention
from dmabench.workload.cells import Cell
from dmabench.workload.decoding import Decoding
from dmabench.workload.inputs import Inputs
from dmabench.workload.levels import level_of


class LevelSubject(Timed):
    """The kernel of latent or native sparse attention, or a layer of any; forward or backward.

    A layer's forward makes its plan, and its backward reuses it, as kernels do.
    """

    def __init__(self, attention: Attention, inputs: Inputs):
        super().__init__()
        self.attention, self.inputs = attention, inputs
        self.level = level_of(attention, inputs)
        self.pass_ = attention.cell.shape.pass_

    def ready(self) -> None:
        """The forward of a backward, else nothing."""
        if self.pass_ == "bwd" and self._graph is None:
            self._state = self._forward()

    def call_region(self) -> Any:
        """As of Subject; in a layer the backward is that of the whole layer."""
        if self.pass_ == "fwd":
            with torch.no_grad():
                return self.level.forward(self.level.leaves, self._prepared_plan())
        leaves, out = self._state if self.pass_ == "bwd" else self._forward()
        return torch.autograd.grad(out, leaves, self._dout, retain_graph=self.pass_ == "bwd", allow_unused=True)

    def plan(self) -> Plan | None:
        """A fresh plan of the cell's delta; None for functions that have none."""
        cell = self.attention.cell
        return self.inputs.plan(cell.delta, cell.window) if cell.delta and cell.window else None

    def check(self, gates: Gates, again: bool = False) -> Verdict:
        """The gate's verdict; `again` after timing is its numeric half."""
        return (gates.level.recheck if again else gates.level.check)(self.level, self.plan())

    @property
    def tensors(self) -> list[Tensor]:
        """What the pass is given, to be counted in its peak memory."""
        given = list(self.level.leaves.values())
        return given if self.pass_ == "fwd" else [*given, self._dout]

    @property
    def _dout(self) -> Tensor:
        shape = self.level.out_shape
        return self.inputs.once(("dout", shape), lambda: self.inputs.normal("dout", *shape))

    def _prepared_plan(self) -> Plan | None:
        plan, cell = self.plan(), self.attention.cell
        if plan is not None and cell.delta and cell.window:
            delta = self.inputs.delta(cell.delta, cell.window)
            self.attention.backend.prepare(plan=plan, delta=delta, problem=self.attention.problem)
        return plan

    def _forward(self) -> tuple[list[Tensor], Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in self.level.leaves.items()}
        return list(leaves.values()), self.level.forward(leaves, self._prepared_plan())


class DecodeSubject(Timed):
    """One decoding step (decoding.py)."""

    def __init__(self, attention: Attention, inputs: Inputs):
        super().__init__()
        self.attention, self.inputs = attention, inputs
        self.decoding = Decoding(attention, inputs)

    def ready(self) -> None:
        """Stand before the new token."""
        self.decoding.ready()

    def call_region(self) -> Any:
        """Importance of the new token (dma), cache write and attention; in a layer its projections too. A cache of live
        keys stands one token further after each call, which costs the same."""
        return self.decoding.step()

    def parts(self) -> dict[str, Callable[[], Any]]:
        """At the kernel level of dma: the importance, and the rest."""
        if self._graph is not None or self.attention.function != "dma" or self.decoding.layer is not None:
            return {}
        return {"importance_ms": self.decoding.importance, "kernel_ms": self.decoding.update}

    def plan(self) -> None:
        """The cache is what is left of it."""

    def check(self, gates: Gates, again: bool = False) -> Verdict:
        """The gate's verdict; `again` after timing leaves out the counting of keys."""
        return (gates.decode.recheck if again else gates.decode.check)(self.decoding)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache keeps after the new token."""
        return self.decoding.cache.nbytes

    @property
    def tensors(self) -> list[Tensor]:
        """What the pass is given, to be counted in its peak memory: the cache is counted by itself."""
        return list(self.decoding.new.values())


AnySubject = Subject | LevelSubject | DecodeSubject

_DECODES = {
    "dma": "dma/live-keys",
    "dense": "dense/sdpa-flash",
    "swa": "swa/sdpa",
    "mla": "mla/absorbed",
    "nsa": "nsa/reference",
}


def make_subject(backend: Backend, cell: Cell, inputs: Inputs) -> AnySubject:
    """The subject of a cell.

    Raises:
        Unsupported: no backend of this kind can do the pass; what a backend refuses by itself is asked elsewhere.
    """
    if cell.shape.pass_ == "decode":
        if "decode" not in backend.passes:
            raise Unsupported(f"{backend.id} takes whole sequences; {_DECODES[cell.function]} decodes")
        return DecodeSubject(Attention(backend, cell), inputs)
    if cell.shape.level == "layer" or cell.function in ("mla", "nsa"):
        return LevelSubject(Attention(backend, cell), inputs)
    return Subject(Call(backend, cell, inputs.scale), inputs)
