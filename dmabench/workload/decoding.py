"""One decoding step of one attention, at the level of its kernel or of its layer."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from dmabench.kernels import importance
from dmabench.workload import layers
from dmabench.workload.attentions import Attention, Tensors
from dmabench.workload.caches import Cache, make_cache
from dmabench.workload.inputs import Inputs
from dmabench.workload.levels import Layer
from dmabench.workload.streams import Stream


class Decoding:
    """A stream, its cache, and the step that reads and writes it. The cache is made when first needed."""

    def __init__(self, attention: Attention, inputs: Inputs, stream: Stream | None = None):
        self.attention, self.inputs = attention, inputs
        self.stream = stream or Stream(attention, inputs)
        self.layer = Layer(attention, inputs) if inputs.shape.level == "layer" else None

    @cached_property
    def cache(self) -> Cache:
        return make_cache(self.stream)

    @cached_property
    def new(self) -> Tensors:
        """What the step is given: the new token's q, k, v and so on, or its hidden state and the layer's weights."""
        if self.layer is None:
            return self.stream.new
        shape = self.inputs.shape
        hidden = self.inputs.normal("new hidden", shape.batch, 1, shape.heads * shape.head_dim)
        return {"hidden": hidden, **self.layer.weights}

    @property
    def out_shape(self) -> tuple[int, ...]:
        shape = self.inputs.shape
        if self.layer is not None:
            return shape.batch, 1, shape.heads * shape.head_dim
        width = self.attention.dims.value if self.attention.function == "mla" else shape.head_dim
        return shape.batch, shape.heads, 1, width

    def ready(self) -> None:
        """Stand before the new token."""
        self.cache.restore()

    @torch.no_grad()
    def step(self) -> Tensor:
        """The whole step: importance of the new token (dma), cache write, attention; in a layer projections too."""
        if self.layer is None and self.attention.function == "dma":
            self.importance()
        return self.update()

    def importance(self) -> Tensor:
        """Of the new token, [B, G, 1]. Its value is not used: delta is the one that the row names."""
        return importance(self.new["v"], self.inputs.weight, self.inputs.gate)

    @torch.no_grad()
    def update(self) -> Tensor:
        """The step without the importance at the kernel level."""
        out = self.cache.step(self.attention, self._with_delta(self.tensors()))
        return out if self.layer is None else layers.output(self.new, out)

    def attend_once(self) -> Tensor:
        """The cache's step on the stream's own new token, [B, H, 1, V], whatever the level."""
        self.ready()
        with torch.no_grad():
            return self.cache.step(self.attention, self._with_delta(self.stream.new))

    def tensors(self) -> Tensors:
        """What the attention is called with for the new token: given, or projected."""
        return self.stream.new if self.layer is None else self._project(self.new)

    def define(self, precision: torch.dtype, attend: Callable[[Tensors], Tensor]) -> Tensor:
        """The step in plain operations.

        Args:
            precision: float64, or the row's dtype.
            attend: makes [rows, H, 1, V] of the new token's tensors, for the rows of the batch that are compared.
        """
        with torch.no_grad():
            if self.layer is None:
                return attend({name: x.to(precision) for name, x in self.stream.new.items()})
            wide = {name: x.double() if precision == torch.float64 else x for name, x in self.new.items()}
            return layers.output(wide, attend(self._project(wide)))

    def _project(self, tensors: Tensors) -> Tensors:
        assert self.layer is not None
        hidden = tensors["hidden"]
        tables = self._tables if hidden.dtype == self.inputs.dtype else self._tables_in(hidden.dtype)
        projected = layers.project(self.attention.function, tensors, hidden, tables, self.attention.dims)
        projected.pop("delta", None)  # computed, and paid for; the row names the one that counts
        return projected

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        return self._tables_in(self.inputs.dtype)

    def _tables_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self.layer is not None
        shape = self.inputs.shape
        return self.layer.tables(torch.tensor([shape.seqlen], device=shape.device), dtype)

    def _with_delta(self, new: Tensors) -> Tensors:
        if self.stream.delta is None:
            return new
        return {**new, "delta": self._new_delta}

    @cached_property
    def _new_delta(self) -> Tensor:
        assert self.stream.delta is not None
        return self.stream.delta[..., -1:].contiguous()
