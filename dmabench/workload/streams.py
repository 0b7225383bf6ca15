"""What a decoding step meets: the keys of the tokens seen, one row of the batch at a time, and the new token.

At 512k tokens a batch of 64 has more keys than a card holds, and a cache of live keys needs none but those: so the past
is drawn for one row of the batch, again each time it is asked for.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dmabench.workload.attentions import LATENT, Attention, Tensors
from dmabench.workload.inputs import Inputs
from dmabench.workload.membership import MOST_HASHES, PER_BUCKET, bucket_of

TOKENS = {"k": 2, "v": 2, "latent": 1, "k_rope": 1}
"""Inputs with a row for each token, and along which axis."""


@dataclass(frozen=True)
class Stream:
    """Standard normal keys and values, and a new token like them."""

    attention: Attention
    inputs: Inputs

    def past(self, b: int) -> Tensors:
        """Of row b, what is cached of each of the T tokens: [1, G, T, D] or [1, T, L]."""
        T = self.inputs.shape.seqlen
        sizes = {name: self.size(name, T) for name in self.cached_names}
        return {name: self.inputs.normal(f"past {name} {b}", 1, *size) for name, size in sizes.items()}

    @cached_property
    def new(self) -> Tensors:
        """What the attention is called with for the new token, all rows: for dma without delta."""
        function, problem = self.attention.function, self.attention.problem
        B, H, D = problem.batch, problem.heads, problem.head_dim
        drawn = {name: self.inputs.normal(f"new {name}", B, *self.size(name, 1)) for name in self.cached_names}
        if function == "mla":
            examples = self.inputs.examples("mla", replace(problem, key_len=1))
            return {name: drawn.get(name, examples[name]) for name in LATENT}
        drawn["q"] = self.inputs.normal("new q", B, H, 1, D)
        if function == "nsa":
            drawn["gates"] = self.inputs.normal("new gates", B, H, 1, 3).sigmoid()
        return drawn

    @cached_property
    def delta(self) -> Tensor | None:
        """Importance of all T + 1 tokens, [B, G, T + 1]; None for functions that have none."""
        cell = self.attention.cell
        if cell.function != "dma":
            return None
        assert cell.delta is not None and cell.window is not None
        return self.inputs.delta(cell.delta, cell.window)

    @property
    def cached_names(self) -> tuple[str, str]:
        """What is kept of each token."""
        return ("latent", "k_rope") if self.attention.function == "mla" else ("k", "v")

    def size(self, name: str, tokens: int) -> tuple[int, ...]:
        """Of what is cached of so many tokens, for one row."""
        if name in ("latent", "k_rope"):
            dims = self.attention.dims
            return tokens, dims.latent if name == "latent" else dims.rope
        shape = self.inputs.shape
        return shape.kv_heads, tokens, shape.head_dim


@dataclass(frozen=True)
class Probe(Stream):
    """A stream with which attention counts keys: q = 0, and values one-hot by a hash of the position.

    Each key weighs 1/n, so an output is the share of live keys in a bucket. The new token is in the first bucket, which
    is always looked at. delta keeps its order and its ties but is all but equal, so that it decides and does not weigh.
    """

    number: int = 0
    """Which hash; odd ones also put the new key on top of the ranking, so that it evicts one (dma)."""

    @property
    def live(self) -> int:
        """Keys that a head attends to."""
        window, keys = self.attention.cell.window, self.inputs.shape.key_len
        if self.attention.function == "nsa":
            settings = self.attention.settings
            blocks = min(settings.select_count, settings.selectable_len(keys))
            return (keys, min(blocks * settings.select_block, keys), min(settings.window, keys))[self.branch]
        return keys if window is None else min(window, keys)

    @property
    def branch(self) -> int:
        """The branch of nsa that is looked at, the others' gates are zero: window, selected, compressed in turn."""
        return 2 - self.number % 3

    @property
    def hashes(self) -> int:
        """How many such probes there are: enough to look at every key, where few are enough."""
        least = 3 if self.attention.function == "nsa" else 2
        return min(MOST_HASHES, max(least, -(-self.live // (PER_BUCKET * self._columns))))

    @property
    def one(self) -> float:
        """The value that stands for a key; a power of two that keeps its share in the range of half precision."""
        return float(min(1 << (self.live.bit_length() - 1), 4096))

    def past(self, b: int) -> Tensors:
        """As of Stream, with one-hot values."""
        past = super().past(b)
        name = "latent" if "latent" in past else "v"
        past[name] = self._one_hot(torch.arange(self.inputs.shape.seqlen, device=past[name].device), past[name])
        return past

    @cached_property
    def new(self) -> Tensors:
        """As of Stream, with queries of zeros and a one-hot value."""
        new = dict(super().new)
        for name in ("q", "q_nope", "q_rope"):
            if name in new:
                new[name] = torch.zeros_like(new[name])
        name = "latent" if "latent" in new else "v"
        new[name] = self._one_hot(torch.tensor([self.inputs.shape.seqlen], device=new[name].device), new[name])
        if "up_v" in new:
            new["up_v"] = torch.eye(*new["up_v"].shape[1:]).to(new["up_v"]).expand_as(new["up_v"]).contiguous()
        if "gates" in new:
            new["gates"] = torch.zeros_like(new["gates"])
            new["gates"][..., self.branch] = 1
        return new

    @cached_property
    def delta(self) -> Tensor | None:
        """As of Stream: its ranks over 2^26, exact in float32 and all but equal for softmax."""
        delta = super().delta
        if delta is None:
            return None
        ordered, order = (delta + 0.0).sort(-1)
        step = torch.nn.functional.pad((ordered[..., 1:] != ordered[..., :-1]).long(), (1, 0))
        ranks = torch.zeros_like(order).scatter_(-1, order, step.cumsum(-1))
        if self.number % 2:
            ranks[..., -1] = ranks.amax(-1) + 1
        return ranks.float() * 2**-26

    @property
    def _columns(self) -> int:
        dims = self.attention.dims
        return min(dims.latent, dims.value) if self.attention.function == "mla" else self.inputs.shape.head_dim

    def _one_hot(self, positions: Tensor, like: Tensor) -> Tensor:
        """[..., tokens, width]: `one` in the column of the key's bucket, nothing for buckets beyond the columns."""
        new = torch.tensor([self.inputs.shape.seqlen], device=positions.device)
        buckets = max(1, -(-self.live // (PER_BUCKET * self._columns))) * self._columns
        seed = self.inputs.shape.seed * 101 + self.number
        bucket = (bucket_of(positions, seed) - bucket_of(new, seed)) % buckets
        columns = torch.arange(like.shape[-1], device=positions.device)
        hot = (bucket[:, None] == columns) & (columns < self._columns)
        return (hot * self.one).to(like.dtype).expand(like.shape).contiguous()
