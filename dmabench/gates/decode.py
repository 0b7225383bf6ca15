"""The gate of decoding: the new token's output is the last row of the definition, and the cache holds what it should.

Numbers: the output against the definition in float64 on all T + 1 keys. Counting: the same step on probes
(workload/streams.py), where each output is a share of the live keys in a bucket, so that one key too many, one
missing, or a new one that is not read shows, where among 100,000 keys a number would not. And the positions that
LiveKeys holds must be those of the `window` best of all keys, by sorting them.

Which blocks native sparse attention chooses depends on rounding where scores are nearly equal. Its definition is
therefore evaluated with the blocks chosen in the row's dtype, after a check that they are the best in float64 but for
such differences.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dmabench.gates.levels import LEAST_MARGIN, ranked_scores, tolerance
from dmabench.gates.numeric import Verdict, budgets, fault, judge, poison
from dmabench.kernels.native_sparse.reference import select_blocks
from dmabench.kernels.native_sparse.selection import as_mask
from dmabench.workload.attentions import Tensors
from dmabench.workload.caches import Live, Summaries, refill
from dmabench.workload.decoding import Decoding
from dmabench.workload.inputs import Inputs
from dmabench.workload.streams import TOKENS, Probe, Stream

ALL_TOKENS = 1 << 22
"""Up to so many tokens in the batch every row is compared; above it SAMPLED of them."""
SAMPLED = 4


class DecodeGate:
    """Checks the decoding steps of one shape; answers are computed once and serve all backends."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs
        self._answers: dict[tuple, tuple[Tensors, Tensors]] = {}
        self._counts: dict[tuple, Tensor] = {}

    def check(self, decoding: Decoding) -> Verdict:
        """Numbers, positions and counts."""
        verdict = self.recheck(decoding)
        if verdict.wrong:
            return verdict
        return Verdict(verdict.error, verdict.budget, self._miscounts(decoding))

    def recheck(self, decoding: Decoding) -> Verdict:
        """The numbers and positions of one step."""
        inputs, stream = self.inputs, decoding.stream
        decoding.ready()
        poison(list(decoding.new.values()))
        out = decoding.step()
        wrong = fault(out, decoding.out_shape, inputs.dtype)
        if wrong is not None:
            return wrong
        tensors, blocks = decoding.tensors(), None
        if isinstance(decoding.cache, Summaries):
            blocks, complaint = self._blocks(decoding.cache, stream, tensors["q"])
            if complaint:
                return Verdict(float("inf"), 0.0, complaint)
        cell, rows = stream.attention.cell, self._rows()
        # The blocks chosen are the same for all backends of nsa: they come from the same cache.
        key = (cell.function, cell.window, cell.delta)
        if key not in self._answers:
            low_dtype = None if inputs.dtype == torch.float32 else inputs.dtype
            self._answers[key] = (
                {"out": decoding.define(torch.float64, self._attention(stream, rows, blocks, None))},
                {"out": decoding.define(inputs.dtype, self._attention(stream, rows, blocks, low_dtype))},
            )
        exact, low = self._answers[key]
        allowed = budgets(low, exact, inputs.dtype, inputs.shape.head_dim)
        verdict = judge({"out": out[rows]}, exact, allowed, inputs.dtype, inputs.shape.head_dim)
        return Verdict(verdict.error, verdict.budget, verdict.wrong or _misplaced(decoding.cache, stream))

    def _rows(self) -> list[int]:
        """Rows of the batch that are compared."""
        shape = self.inputs.shape
        if shape.batch * shape.seqlen <= ALL_TOKENS or shape.batch <= SAMPLED:
            return list(range(shape.batch))
        return sorted({round(n * (shape.batch - 1) / (SAMPLED - 1)) for n in range(SAMPLED)})

    def _attention(
        self, stream: Stream, rows: list[int], blocks: Tensor | None, rounding: torch.dtype | None
    ) -> Callable[[Tensors], Tensor]:
        """A function of the new token's tensors, all rows: the definition on all keys, [rows, H, 1, V]."""

        def attend(new: Tensors) -> Tensor:
            parts = []
            for b in rows:
                chosen = None if blocks is None else blocks[b : b + 1]
                parts.append(_define(stream, new, b, chosen, rounding))
            return torch.cat(parts)

        return attend

    def _blocks(self, cache: Summaries, stream: Stream, q: Tensor) -> tuple[Tensor, str | None]:
        """The blocks that are chosen in the row's dtype, and a sentence if they are not the best."""
        attention, shape = stream.attention, self.inputs.shape
        settings, keys = attention.settings, shape.key_len
        blocks = select_blocks(q, cache.compressed[0], keys, settings, attention.scale)
        last = torch.tensor([keys - 1], device=q.device)
        for b in self._rows():
            k = torch.cat([stream.past(b)["k"], cache.k[b : b + 1, :, keys - 1 : keys]], 2)
            scores, low = (ranked_scores(q[b : b + 1], x, settings, attention.scale, last) for x in (k.double(), k))
            chosen = as_mask(blocks[b : b + 1], scores.shape[-1])
            worst = scores.masked_fill(~chosen, torch.inf).amin(-1)
            left_out = scores.masked_fill(chosen, -torch.inf).amax(-1)
            if bool((worst + tolerance(scores, low) < (1 - LEAST_MARGIN) * left_out).any()):
                return blocks, f"batch {b}: a block is chosen that scores less than one left out"
        return blocks, None

    def _miscounts(self, decoding: Decoding) -> str | None:
        """A sentence about the first probe whose counts are wrong."""
        stream = decoding.stream
        hashes = Probe(stream.attention, stream.inputs).hashes
        try:
            for number in range(hashes):
                found = self._miscount(Probe(stream.attention, stream.inputs, number))
                if found:
                    return f"{found} (probe {number + 1} of {hashes})"
        finally:
            refill(stream)
        return None

    def _miscount(self, probe: Probe) -> str | None:
        attention, cell, rows = probe.attention, probe.attention.cell, self._rows()
        decoding = Decoding(attention, self.inputs, probe)
        out = decoding.attend_once()
        cache, blocks = decoding.cache, None
        if isinstance(cache, Summaries):
            blocks, _ = self._blocks(cache, probe, probe.new["q"])
        key = (cell.function, cell.window, cell.delta, probe.number)
        if key not in self._counts:
            wide = {name: x.double() for name, x in probe.new.items()}
            self._counts[key] = self._attention(probe, rows, blocks, None)(wide)
        exact = self._counts[key]
        unit = probe.one / probe.live
        if attention.function == "nsa" and probe.branch == 0:  # a summary is the mean of a block
            unit = probe.one / max(1, attention.settings.compressed_len(self.inputs.shape.key_len))
            unit /= attention.settings.compress_block
        counts, expected = out[rows].double() / unit, exact / unit
        eps = torch.finfo(out.dtype).eps
        wrong = ~((counts - expected).abs() <= 0.3 + (eps * expected.abs()).clamp(max=0.4))
        if wrong.any():
            b, h, _, column = map(int, wrong.nonzero()[0])
            return (
                f"decode: batch {rows[b]}, head {h} counts {float(counts[b, h, 0, column]):.2f} instead of "
                f"{float(expected[b, h, 0, column]):.2f} keys in a bucket; {int(wrong.sum())} counts wrong"
            )
        return _misplaced(cache, probe)


def _define(stream: Stream, new: Tensors, b: int, blocks: Tensor | None, rounding: torch.dtype | None) -> Tensor:
    """The definition for the new token of row b, in the precision of `new`: [1, H, 1, V]."""
    attention, past = stream.attention, stream.past(b)
    precision = next(iter(new.values())).dtype
    tensors = {}
    for name, x in new.items():
        if name in TOKENS:
            x = torch.cat([past[name].to(precision), x[b : b + 1]], TOKENS[name])
        elif name not in ("up_k", "up_v"):
            x = x[b : b + 1]
        tensors[name] = x
    lifetimes = None
    if stream.delta is not None:
        delta = stream.delta[b : b + 1]
        tensors["delta"] = delta.to(precision) if precision == torch.float64 else delta
        lifetimes = _last_row(best(delta, attention.cell.window or 0))
    elif attention.function != "nsa":
        position = torch.arange(stream.inputs.shape.key_len, device=stream.inputs.shape.device)
        window = attention.cell.window or len(position)
        lifetimes = _last_row((position >= len(position) - window)[None, None])
    last = torch.tensor([stream.inputs.shape.seqlen], device=stream.inputs.shape.device)
    return attention.define(tensors, last, lifetimes, rounding, blocks)


def best(delta_BGT: Tensor, window: int) -> Tensor:
    """bool [B, G, T]: the `window` largest, the later of equals. By one stable sort, as the definition reads."""
    order = torch.sort(delta_BGT + 0.0, dim=-1, stable=True).indices[..., -window:]
    return torch.zeros_like(delta_BGT, dtype=torch.bool).scatter_(-1, order, True)


def _last_row(live: Tensor) -> tuple[Tensor, Tensor]:
    """Birth and evict of keys of which `live` tells whether the query at the last position attends to them."""
    return torch.zeros_like(live, dtype=torch.int32), live.int() * live.shape[-1]


def _misplaced(cache: object, stream: Stream) -> str | None:
    """A sentence if a cache of live keys holds others than those that are live."""
    if not isinstance(cache, Live) or stream.delta is None:
        return None
    wrong = cache.positions() != best(stream.delta, cache.keys.window)
    if not bool(wrong.any()):
        return None
    b, g, j = map(int, wrong.nonzero()[0])
    held = "holds" if bool(cache.positions()[b, g, j]) else "lacks"
    return f"the cache {held} key {j} (batch {b}, key/value head {g}); {int(wrong.sum())} positions wrong"
