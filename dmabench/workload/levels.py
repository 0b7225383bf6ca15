"""The two levels at which an attention is checked and timed: its kernel, and the layer around it.

Both are functions of named tensors (`leaves`) and come in two versions: `forward`, with the backend, and `define`, the
definition at any precision. At the layer level the importance is computed and differentiated as in a model, but the
delta that keys are chosen by is the one the row names: the distribution is an axis, and the ranking must not depend on
how the values were rounded.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dmabench.kernels import Plan
from dmabench.workload import layers
from dmabench.workload.attentions import QUERIES, Attention, Tensors
from dmabench.workload.inputs import Inputs

Lifetimes = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Kernel:
    """The attention alone."""

    attention: Attention
    inputs: Inputs
    rows_axis = 2

    @cached_property
    def leaves(self) -> Tensors:
        """What the kernel is called with, for dma with the named delta."""
        inputs, function = self.inputs, self.attention.function
        if function in ("mla", "nsa"):
            return inputs.examples(function, self.attention.problem)
        delta = {"delta": named_delta(self.attention, inputs)} if function == "dma" else {}
        return {"q": inputs.q, "k": inputs.k, "v": inputs.v, **delta}

    @property
    def out_shape(self) -> tuple[int, ...]:
        shape = self.inputs.shape
        width = self.attention.dims.value if self.attention.function == "mla" else shape.head_dim
        return shape.batch, shape.heads, shape.seqlen, width

    def forward(self, leaves: Tensors, plan: Plan | None, keep: Tensor | None = None) -> Tensor:
        """What the backend computes: [B, H, T, V].

        Args:
            keep: [B, H, T, 1], multiplied with the attention's output: 0 where it is not to be compared.
        """
        return _kept(self.attention.attend(leaves, plan), keep)

    def define(
        self,
        leaves: Tensors,
        rows: Tensor,
        lifetimes: Lifetimes | None,
        rounding: torch.dtype | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The definition for the queries `rows`; keep is [B, H, rows, 1]."""
        asked = {name: x[:, :, rows] if name in QUERIES else x for name, x in leaves.items()}
        return _kept(self.attention.define(asked, rows, lifetimes, rounding), keep)

    def queries_and_keys(self, leaves: Tensors, rows: Tensor) -> tuple[Tensor, Tensor]:
        """q [B, H, rows, D] and k [B, G, T, D] of an attention that has them."""
        return leaves["q"][:, :, rows], leaves["k"]


@dataclass(frozen=True)
class Layer:
    """Hidden states to output: projections, rotary embedding, importance or gates, attention, output projection."""

    attention: Attention
    inputs: Inputs
    rows_axis = 1

    @cached_property
    def leaves(self) -> Tensors:
        """`hidden` [B, T, C] and the weights, standard normal over the root of their inputs."""
        inputs, shape = self.inputs, self.inputs.shape
        size = (shape.batch, shape.seqlen, shape.heads * shape.head_dim)
        return {"hidden": inputs.once("hidden", lambda: inputs.normal("hidden", *size)), **self.weights}

    @cached_property
    def weights(self) -> Tensors:
        """The weights alone."""
        return self.inputs.once(("weights", self.attention.function), self._draw_weights)

    def _draw_weights(self) -> Tensors:
        inputs, drawn = self.inputs, {}
        for name, size in layers.weight_shapes(self.attention.function, inputs.shape, self.attention.dims).items():
            if name == "weight":
                drawn[name] = inputs.weight
            elif name == "gate":
                drawn[name] = inputs.gate
            elif name == "norm":
                drawn[name] = torch.ones(size, device=inputs.shape.device)
            else:
                drawn[name] = inputs.normal(name, *size) * size[-1] ** -0.5
        return drawn

    @property
    def out_shape(self) -> tuple[int, ...]:
        shape = self.inputs.shape
        return shape.batch, shape.seqlen, shape.heads * shape.head_dim

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin at int positions [T]. A model makes them once for all its layers, so no layer's time has them."""
        dims = layers.rotary_dims(self.attention.function, self.attention.dims)
        return layers.rotary(positions, dims, dtype)

    @cached_property
    def all_tables(self) -> tuple[Tensor, Tensor]:
        """Those of the whole sequence in the row's dtype."""
        return self.tables(torch.arange(self.inputs.shape.seqlen, device=self.inputs.shape.device), self.inputs.dtype)

    def forward(self, leaves: Tensors, plan: Plan | None, keep: Tensor | None = None) -> Tensor:
        """What the layer computes with the backend: [B, T, C]. Arguments as in `Kernel.forward`."""
        function, dims = self.attention.function, self.attention.dims
        tensors = layers.project(function, leaves, leaves["hidden"], self.all_tables, dims)
        self._choose_by_named(tensors)
        return layers.output(leaves, _kept(self.attention.attend(tensors, plan), keep))

    def define(
        self,
        leaves: Tensors,
        rows: Tensor,
        lifetimes: Lifetimes | None,
        rounding: torch.dtype | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The same layer with the definition of its attention, for the tokens `rows`: [B, rows, C]."""
        tensors = self._project(leaves, rows)
        self._choose_by_named(tensors)
        return layers.output(leaves, _kept(self.attention.define(tensors, rows, lifetimes, rounding), keep))

    def queries_and_keys(self, leaves: Tensors, rows: Tensor) -> tuple[Tensor, Tensor]:
        """q [B, H, rows, D] and k [B, G, T, D] of an attention that has them."""
        tensors = self._project(leaves, rows)
        return tensors["q"], tensors["k"]

    def _project(self, leaves: Tensors, rows: Tensor) -> Tensors:
        hidden = leaves["hidden"]
        tables = self.tables(torch.arange(hidden.shape[1], device=hidden.device), hidden.dtype)
        return layers.project(self.attention.function, leaves, hidden, tables, self.attention.dims, rows)

    def _choose_by_named(self, tensors: Tensors) -> None:
        if "delta" in tensors:
            computed = tensors["delta"]
            named = named_delta(self.attention, self.inputs).to(computed.dtype)
            tensors["delta"] = _InPlaceOf.apply(computed, named)


class _InPlaceOf(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(ctx, computed, named):
        return named.view_as(named)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


Level = Kernel | Layer


def named_delta(attention: Attention, inputs: Inputs) -> Tensor:
    """The delta that a cell of dma names."""
    cell = attention.cell
    assert cell.delta is not None and cell.window is not None
    return inputs.delta(cell.delta, cell.window)


def level_of(attention: Attention, inputs: Inputs) -> Level:
    """The level that the cell names."""
    return (Layer if attention.cell.shape.level == "layer" else Kernel)(attention, inputs)


def _kept(out: Tensor, keep: Tensor | None) -> Tensor:
    return out if keep is None else out * keep
