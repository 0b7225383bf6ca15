"""What the second half of the correctness gate asks: which keys does each query really attend to?

A numeric comparison passes a mask that keeps one evicted key too long: one wrong weight among a thousand drowns in
rounding. So inputs are chosen for which attention counts keys. With q = 0 and no bias every live key weighs 1/n; with
one-hot values by a hash of the position, each output is a count of live keys a bucket, and a single wrong key moves a
count by one where rounding moves it by a few hundredths. Forward: every row. Backward: dq of every row (through v in
{-1, +1} and one-hot keys), dv from sampled queries (through one-hot dout).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmabench.kernels import Plan

PER_BUCKET = 16
"""Live keys a bucket on average: one wrong key changes a count by about 6%, where bf16 rounding is under 0.4%."""
MOST_HASHES = 8

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, Plan | None], Tensor]


@dataclass(frozen=True)
class Lifetimes:
    """The expected mask: key j is live for the queries [birth, evict); int32 [B or 1, G or 1, T]."""

    birth: Tensor
    evict: Tensor
    window: int


def wrong_rows(
    attention: Attention,
    like_q: Tensor,
    like_k: Tensor,
    biased: bool,
    plan: Plan | None,
    mask: Lifetimes,
    scale: float,
    backward: bool,
    seed: int,
) -> str | None:
    """A sentence about the first wrong membership found, or None.

    Args:
        attention: (q, k, v, delta, plan) -> out.
        like_q, like_k: tensors whose shapes, dtype and device the probes take.
        biased: pass a delta of zeros.
        plan: of the real delta; the probes use its mask and not its bias.
        scale: the factor the attention applies to its scores (dq carries it).
    """
    probe = _Probe(attention, like_q, like_k, biased, plan, mask, scale)
    hashes = min(MOST_HASHES, max(2, probe.rarity))
    for h in range(hashes):
        bucket = bucket_of(torch.arange(like_k.shape[2], device=like_k.device), seed * 101 + h) % probe.buckets
        found = probe.forward(bucket)
        if found is None and backward and h < 2:
            found = probe.queries(bucket) or probe.keys(bucket, seed + h)
        if found:
            return f"{found} (probe {h + 1} of {hashes})"
    return None


def bucket_of(x: Tensor, seed: int) -> Tensor:
    """A hash of each position, an int of 32 bits; its remainder by a number of buckets is the bucket."""
    x = (x.long() + seed * 0x9E3779B1) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)


class _Probe:
    def __init__(self, attention, like_q, like_k, biased, plan, mask, scale):
        self.attention, self.plan, self.mask, self.scale = attention, plan, mask, scale
        self.q, self.k = torch.zeros_like(like_q), like_k
        B, G, T, D = like_k.shape
        self.delta = torch.zeros(B, G, T, device=like_k.device) if biased else None
        self.groups = like_q.shape[1] // G
        # More keys than PER_BUCKET * D: use more buckets than columns, so that each probe looks at a part of the keys.
        self.rarity = -(-min(mask.window, T) // (PER_BUCKET * D))
        self.buckets = self.rarity * D
        # A power of two keeps one-hot products exact and small results out of fp16's subnormal range.
        self.one = float(min(1 << (min(mask.window, T).bit_length() - 1), 4096))
        self.live = self._prefix_counts(torch.ones(T, dtype=torch.float64, device=like_k.device))

    def _prefix_counts(self, weight_T: Tensor) -> Tensor:
        """Sum of weight over the live keys of every query: [B, G, T] float64, exact for small integers."""
        birth, evict = self.mask.birth.long(), self.mask.evict.long()
        change = torch.zeros(*birth.shape[:2], birth.shape[2] + 1, dtype=torch.float64, device=birth.device)
        weight = weight_T.expand(birth.shape)
        change.scatter_add_(2, birth, weight)
        change.scatter_add_(2, evict, -weight)
        return change.cumsum(2)[..., :-1]

    def _one_hot(self, bucket: Tensor, value: float) -> Tensor:
        """[T, D]: value in the bucket's column, nothing for buckets beyond the columns."""
        columns = torch.arange(self.k.shape[3], device=bucket.device)
        return ((bucket[:, None] == columns) * value).to(self.k.dtype)

    def _values(self, rows_TD: Tensor) -> Tensor:
        return rows_TD.expand(self.k.shape).contiguous()

    def _differentiable(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, v and out. Every input requires a gradient, as in the numeric half: a compiled attention is compiled for
        each set of inputs that do."""
        inputs = (self.q, k, v) if self.delta is None else (self.q, k, v, self.delta)
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = self.attention(leaves[0], leaves[1], leaves[2], leaves[3] if len(leaves) == 4 else None, self.plan)
        return leaves[0], leaves[2], out

    def _compare(
        self, got: Tensor, bucket: Tensor, expected_of: Callable[[Tensor], Tensor], unit: Tensor, what: str
    ) -> str | None:
        """got [B, H, T, D] against expected_of(weight of each key) [B, G, T], in units of one key [B, G, T]."""
        eps = torch.finfo(got.dtype).eps
        B, H, T, D = got.shape
        got = got.unflatten(1, (-1, self.groups))
        for column in range(D):
            expected = (expected_of((bucket == column).double()) / unit)[:, :, None]
            count = got[..., column].double() / unit[:, :, None]
            wrong = ~((count - expected).abs() <= 0.3 + (eps * expected.abs()).clamp(max=0.4))
            if wrong.any():
                b, g, h, i = map(int, wrong.nonzero()[0])
                return (
                    f"{what}: batch {b}, head {g * self.groups + h}, query {i} counts {float(count[b, g, h, i]):.2f} "
                    f"instead of {float(expected.expand(B, H // self.groups, 1, T)[b, g, 0, i]):.2f} keys in a bucket; "
                    f"{int(wrong.sum())} counts wrong"
                )
        return None

    def forward(self, bucket: Tensor) -> str | None:
        with torch.no_grad():
            out = self.attention(self.q, self.k, self._values(self._one_hot(bucket, self.one)), self.delta, self.plan)
        rows = self.live.clamp(min=1)
        return self._compare(
            out, bucket, lambda w: self._prefix_counts(w) * self.one / rows, self.one / rows, "forward"
        )

    def queries(self, bucket: Tensor) -> str | None:
        """dq_i = scale/n sum_j (s_j - mean) k_j with s_j = +-1 carried by v's first column and k_j one-hot."""
        sign = (bucket_of(torch.arange(bucket.numel(), device=bucket.device), 7) & 1).double() * 2 - 1
        v = torch.zeros_like(self.k)
        v[..., 0] = (sign * self.one).to(v.dtype)
        q, _, out = self._differentiable(self._values(self._one_hot(bucket, 1.0)), v)
        dout = torch.zeros_like(out)
        dout[..., 0] = 1
        (dq,) = torch.autograd.grad(out, q, dout)
        rows = self.live.clamp(min=1)
        mean = self._prefix_counts(sign) / rows
        unit = self.scale * self.one / rows

        def expected(weight: Tensor) -> Tensor:
            return (self._prefix_counts(weight * sign) - mean * self._prefix_counts(weight)) * unit

        return self._compare(dq, bucket, expected, unit, "backward dq")

    def keys(self, bucket: Tensor, seed: int) -> str | None:
        """dv_j = sum over sampled queries i of p_ij dout_i: a weighted count of the sampled queries in j's life."""
        D = self.k.shape[3]
        rows = sample_rows(self.mask, PER_BUCKET * D, seed)
        column = bucket[rows] % D
        dout = torch.zeros_like(self.q)
        dout[:, :, rows, column] = self.one
        _, v, out = self._differentiable(self.k, self._values(self._one_hot(bucket, 1.0)))
        (dv,) = torch.autograd.grad(out, v, dout)
        eps = torch.finfo(dv.dtype).eps
        live = self.live.clamp(min=1)
        share = self.one * self.groups / live[..., rows]  # what one query adds to one key: [B or 1, G or 1, R]
        unit = share.amin(-1, keepdim=True)
        start = torch.searchsorted(rows, self.mask.birth.long().contiguous())
        stop = torch.searchsorted(rows, self.mask.evict.long().contiguous())
        for c in range(D):
            total = torch.nn.functional.pad((share * (column == c)).cumsum(-1), (1, 0))
            expected = total.gather(-1, stop) - total.gather(-1, start)
            wrong = ~((dv[..., c].double() - expected).abs() <= 0.3 * unit + 2 * eps * expected.abs())
            if wrong.any():
                b, g, j = map(int, wrong.nonzero()[0])
                return f"backward dv: batch {b}, key/value head {g}, key {j}; {int(wrong.sum())} keys wrong"
        return None


def sample_rows(mask: Lifetimes, count: int, seed: int) -> Tensor:
    """At most `count` distinct sorted query positions: beside evictions, the last ones, and random ones; int64."""
    T = mask.evict.shape[-1]
    device = mask.evict.device
    if T <= count:
        return torch.arange(T, device=device)
    generator = torch.Generator().manual_seed(seed)
    evict = mask.evict.flatten()
    beside = evict[torch.randint(evict.numel(), (count // 4,), generator=generator).to(device)].long()
    anywhere = torch.randint(T, (count // 4,), generator=generator).to(device)
    last = torch.arange(T - count // 4, T, device=device)
    return torch.cat([beside - 1, beside, anywhere, last]).clamp(0, T - 1).unique()
