"""The cache that each attention decodes with, and one step of it: write the new token, attend.

Every cache is filled with the past of a stream and stands before its new token. A step writes in place and waits for
nothing, so that a CUDA graph can hold it; all but LiveKeys write the same places each time, so that a step can be
repeated.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dmabench.kernels import LiveKeys, Unsupported, decode_step, latent, make_plan, native_sparse
from dmabench.kernels.native_sparse import compress
from dmabench.workload.attentions import Attention, Tensors
from dmabench.workload.streams import TOKENS, Probe, Stream

MARGIN = 64
"""Places for further tokens, as a static cache has them."""


class Cache(Protocol):
    """What is kept of the tokens seen."""

    nbytes: int
    """Bytes that it keeps after the new token, without places for further ones."""

    def step(self, attention: Attention, new: Tensors) -> Tensor:
        """Write the new token and attend: [B, H, 1, V]. `new` is a stream's, for dma with delta [B, G, 1]."""
        ...

    def restore(self) -> None:
        """Stand before the new token again."""
        ...


def make_cache(stream: Stream) -> Cache:
    """The cache of the stream's attention.

    Raises:
        Unsupported: the backend does not decode, or not with a cache that is known here.
    """
    attention = stream.attention
    backend, function = attention.backend, attention.function
    kinds: dict[str, Callable[[Stream], Cache]] = {
        "dense": Growing,
        "swa": Ring,
        "mla": Latents,
        "nsa": Summaries,
        "dma": Live,
    }
    if function == "dma" and backend.name != "live-keys":
        raise Unsupported(f"{backend.id} does not decode with a cache of live keys; dma/live-keys does")
    return kinds[function](stream)


class Growing:
    """Keys and values of all tokens."""

    def __init__(self, stream: Stream) -> None:
        self.seen = stream.inputs.shape.seqlen
        self.k, self.v = _filled(stream, {"k": self.seen + MARGIN, "v": self.seen + MARGIN}).values()
        self.nbytes = sum(_bytes(x[:, :, : self.seen + 1]) for x in (self.k, self.v))

    def write(self, new: Tensors) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones among them."""
        self.k[:, :, self.seen : self.seen + 1] = new["k"]
        self.v[:, :, self.seen : self.seen + 1] = new["v"]
        return self.k[:, :, : self.seen + 1], self.v[:, :, : self.seen + 1]

    def step(self, attention: Attention, new: Tensors) -> Tensor:
        """See Cache."""
        k, v = self.write(new)
        return attention.attend({**new, "k": k, "v": v})

    def restore(self) -> None:
        """A step writes what it wrote before."""


class Summaries(Growing):
    """Keys and values of all tokens, and of each complete block of them one compressed key and value.

    The step computes a summary where the new token completes a block, which is one step in d.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.settings = stream.attention.settings
        done = self.settings.compressed_len(self.seen)
        self.count = self.settings.compressed_len(self.seen + 1)
        self.compressed = []
        for x in (self.k, self.v):
            kept = x.new_zeros(*x.shape[:2], self.count, x.shape[3])
            for b in range(x.shape[0]):
                kept[b : b + 1, :, :done] = compress(x[b : b + 1, :, : self.seen], self.settings)
            self.compressed.append(kept)
        self.completes = self.count > done
        self.nbytes = native_sparse.cache_bytes(stream.attention.problem, self.settings)

    def step(self, attention: Attention, new: Tensors) -> Tensor:
        """See Cache."""
        k, v = self.write(new)
        if self.completes:
            for kept, x in zip(self.compressed, (k, v), strict=True):
                kept[:, :, -1:] = compress(x[:, :, -self.settings.compress_block :], self.settings)
        return attention.backend.attend(
            new["q"],
            k,
            v,
            gates=new["gates"],
            settings=self.settings,
            scale=attention.scale,
            compressed=tuple(self.compressed),
        )


class Ring:
    """Keys and values of the last `window` tokens; the new one takes the place of the oldest."""

    def __init__(self, stream: Stream) -> None:
        window, seen = stream.attention.cell.window, stream.inputs.shape.seqlen
        assert window is not None
        self.k, self.v = _filled(stream, {"k": window, "v": window}).values()
        self.place, self.held = seen % window, min(window, seen + 1)
        self.nbytes = _bytes(self.k) + _bytes(self.v)

    def step(self, attention: Attention, new: Tensors) -> Tensor:
        """See Cache. Attention does not depend on the order of keys, so the ring is read as it lies."""
        self.k[:, :, self.place : self.place + 1] = new["k"]
        self.v[:, :, self.place : self.place + 1] = new["v"]
        return attention.attend({**new, "k": self.k[:, :, : self.held], "v": self.v[:, :, : self.held]})

    def restore(self) -> None:
        """A step writes what it wrote before."""


class Latents:
    """The latent and the rotary key of all tokens, once for all heads."""

    def __init__(self, stream: Stream) -> None:
        self.seen = stream.inputs.shape.seqlen
        places = {"latent": self.seen + MARGIN, "k_rope": self.seen + MARGIN}
        self.latent, self.k_rope = _filled(stream, places).values()
        self.nbytes = latent.cache_bytes(stream.attention.problem)

    def step(self, attention: Attention, new: Tensors) -> Tensor:
        """See Cache."""
        self.latent[:, self.seen : self.seen + 1] = new["latent"]
        self.k_rope[:, self.seen : self.seen + 1] = new["k_rope"]
        held = {"latent": self.latent[:, : self.seen + 1], "k_rope": self.k_rope[:, : self.seen + 1]}
        return attention.attend({**new, **held})

    def restore(self) -> None:
        """A step writes what it wrote before."""


class Live:
    """LiveKeys after T tokens: the keys that the plan says are live after the last of them."""

    def __init__(self, stream: Stream) -> None:
        inputs, window, delta = stream.inputs, stream.attention.cell.window, stream.delta
        assert window is not None and delta is not None
        self.seen = inputs.shape.seqlen
        before = delta[..., : self.seen].contiguous()
        live_BGT = make_plan(before, window).evict_BGT == self.seen
        B, G = delta.shape[:2]
        # No key is padded or NaN here, so all heads have the same number.
        source = live_BGT.nonzero()[:, 2].view(B, G, min(window, self.seen))
        kept: dict[str, list[Tensor]] = {"k": [], "v": []}
        for b in range(B):
            for name, x in stream.past(b).items():
                rows = source[b : b + 1, ..., None].expand(-1, -1, -1, x.shape[-1])
                kept[name].append(x.gather(2, rows))
        self.keys = LiveKeys(window)
        self.keys.prefill(torch.cat(kept["k"]), torch.cat(kept["v"]), before.gather(2, source))
        self.keys.position_BGW[..., : source.shape[-1]] = source.int()
        self.keys.seen_BG.fill_(self.seen)
        self.nbytes = self.keys.nbytes
        self._before = [x.clone() for x in self._buffers]

    @property
    def _buffers(self) -> list[Tensor]:
        keys = self.keys
        return [keys.k_BGWD, keys.v_BGWD, keys.delta_BGW, keys.position_BGW, keys.count_BG, keys.seen_BG]

    def step(self, attention: Attention, new: Tensors) -> Tensor:
        """See Cache."""
        return decode_step(self.keys, new["q"], new["k"], new["v"], new["delta"], attention.scale)

    def restore(self) -> None:
        """A step changes what the next one finds."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
        self.keys.seen = self.seen

    def positions(self) -> Tensor:
        """bool [B, G, T + 1]: the tokens whose keys are held."""
        B, G, W = self.keys.position_BGW.shape
        held = torch.arange(W, device=self.keys.count_BG.device) < self.keys.count_BG[..., None]
        place = torch.where(held, self.keys.position_BGW.long(), self.seen + 1)
        found = torch.zeros(B, G, self.seen + 2, dtype=torch.bool, device=place.device)
        return found.scatter_(-1, place.clamp(0, self.seen + 1), True)[..., :-1]


def refill(stream: Stream) -> None:
    """Write the past of a stream that is timed again, after probes have used its memory."""
    for places, tensors in stream.inputs.once(_SHARED, dict).items():
        if tuple(tensors) == stream.cached_names:
            _fill(stream, dict(places), tensors)


_SHARED = "memory of caches"


def _filled(stream: Stream, places: dict[str, int]) -> Tensors:
    """Tensors with so many places for tokens, the past at its position modulo the number of places.

    All backends that keep the same share this memory, the most of a card's, and so do probes (see `refill`).
    """
    shared, key = stream.inputs.once(_SHARED, dict), tuple(places.items())
    fresh = key not in shared
    if fresh:
        batch, dtype, device = stream.inputs.shape.batch, stream.inputs.dtype, stream.inputs.shape.device
        shared[key] = {
            name: torch.zeros(batch, *stream.size(name, count), dtype=dtype, device=device)
            for name, count in places.items()
        }
    if fresh or isinstance(stream, Probe):
        _fill(stream, places, shared[key])
    return shared[key]


def _fill(stream: Stream, places: dict[str, int], tensors: Tensors) -> None:
    shape = stream.inputs.shape
    for b in range(shape.batch):
        for name, x in stream.past(b).items():
            axis, count = TOKENS[name], places[name]
            position = torch.arange(max(0, shape.seqlen - count), shape.seqlen, device=x.device)
            tensors[name][b : b + 1].index_copy_(axis, position % count, x.index_select(axis, position))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
