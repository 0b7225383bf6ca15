"""Each attention at the level of its kernel: how a backend of it is called, and what it must compute.

Inputs are tensors by name: q, k, v (and delta for dma, gates for nsa), or q_nope, q_rope, latent, k_rope, up_k, up_v
for mla. The definitions take any precision up to float64 and queries at any positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmabench.kernels import Backend, Plan, Problem, latent, native_sparse, reference
from dmabench.kernels.latent import LatentDims
from dmabench.kernels.native_sparse import Settings
from dmabench.kernels.native_sparse import reference as sparse_reference
from dmabench.workload.cells import Cell
from dmabench.workload.inputs import TORCH_DTYPE

Tensors = dict[str, Tensor]

LATENT = ("q_nope", "q_rope", "latent", "k_rope", "up_k", "up_v")
"""The inputs of mla, in the order of its call."""
QUERIES = ("q", "q_nope", "q_rope", "gates")
"""Inputs with a row for each query, along their third axis. The others have one for each key, or are weights."""


def problem_of(cell: Cell) -> Problem:
    """The cell in the terms in which a backend may refuse it."""
    shape = cell.shape
    return Problem(
        device=torch.device(shape.device).type,
        dtype=TORCH_DTYPE[shape.dtype],
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        query_len=1 if shape.pass_ == "decode" else shape.seqlen,
        key_len=shape.key_len,
        head_dim=shape.head_dim,
        window=cell.window,
        backward="bwd" in shape.pass_,
    )


@dataclass(frozen=True)
class Attention:
    """A backend bound to the settings of one cell."""

    backend: Backend
    cell: Cell

    @property
    def problem(self) -> Problem:
        return problem_of(self.cell)

    @property
    def function(self) -> str:
        return self.backend.function

    @property
    def dims(self) -> LatentDims:
        """Sizes of mla."""
        return latent.dims_for(self.problem)

    @property
    def settings(self) -> Settings:
        """Sizes of nsa."""
        return native_sparse.settings_for(self.cell.window)

    @property
    def scale(self) -> float:
        width = self.dims.nope + self.dims.rope if self.function == "mla" else self.cell.shape.head_dim
        return width**-0.5

    def attend(self, tensors: Tensors, plan: Plan | None = None) -> Tensor:
        """What the backend makes of them: [B, H, queries, V]."""
        call, scale = self.backend.attend, self.scale
        if self.function == "mla":
            return call(*(tensors[name] for name in LATENT), scale=scale)
        q, k, v = tensors["q"], tensors["k"], tensors["v"]
        if self.function == "dma":
            return call(q, k, v, delta=tensors["delta"], plan=plan, scale=scale)[0]
        if self.function == "nsa":
            return call(q, k, v, gates=tensors["gates"], settings=self.settings, scale=scale)
        if self.function == "swa":
            return call(q, k, v, window=self.cell.window, scale=scale)
        return call(q, k, v, scale=scale)

    def define(
        self,
        tensors: Tensors,
        rows: Tensor,
        lifetimes: tuple[Tensor, Tensor] | None,
        rounding: torch.dtype | None = None,
        blocks: Tensor | None = None,
    ) -> Tensor:
        """The definition, in the precision of the tensors, for queries at the positions `rows`.

        Args:
            tensors: those in QUERIES at these positions alone.
            lifetimes: birth and evict, int [B or 1, G or 1, T], the mask of all functions but nsa.
            rounding: as in `reference.attend`.
            blocks: nsa's selection, int [B, G, rows, n], in place of its own.

        Returns:
            [B, H, rows, V].
        """
        if self.function == "nsa":
            q, k, v, gates = (tensors[name] for name in ("q", "k", "v", "gates"))
            return sparse_reference.attend(q, k, v, gates, self.settings, self.scale, positions=rows, blocks=blocks)
        assert lifetimes is not None
        if self.function == "mla":
            return self._define_latent(tensors, rows, lifetimes, rounding)
        q, k, v = tensors["q"], tensors["k"], tensors["v"]
        delta = tensors["delta"] if self.function == "dma" else k.new_zeros(k.shape[:3])
        birth, evict = (x.expand(k.shape[:3]) for x in lifetimes)
        return reference.attend(q, k, v, delta, birth, evict, self.scale, rows, rounding)[0]

    def _define_latent(self, tensors: Tensors, rows: Tensor, lifetimes, rounding) -> Tensor:
        """Keys and values of one head after another, as equations 9 to 19 of arXiv 2405.04434 make them."""
        q_nope, q_rope, latent_BTL, k_rope, up_k, up_v = (tensors[name] for name in LATENT)
        outputs = []
        for h in range(q_nope.shape[1]):
            q = torch.cat([q_nope[:, h : h + 1], q_rope[:, h : h + 1]], -1)
            k = torch.cat([latent_BTL @ up_k[h].mT, k_rope], -1)[:, None]
            v = (latent_BTL @ up_v[h].mT)[:, None]
            width = max(q.shape[-1], v.shape[-1])  # the reference takes equal dims: zeros change nothing
            q, k, wide_v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
            birth, evict = (x.expand(k.shape[:3]) for x in lifetimes)
            zeros = k.new_zeros(k.shape[:3])
            out = reference.attend(q, k, wide_v, zeros, birth, evict, self.scale, rows, rounding)[0]
            outputs.append(out[..., : v.shape[-1]])
        return torch.cat(outputs, 1)
