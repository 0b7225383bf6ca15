"""Correct before fast: no cell shows a time before its backend has computed the right function, here and now.

Two halves. Numeric: output and every gradient against float64, within a budget made from what the dtype itself must
cost. Membership (membership.py): which keys each query attends to, counted. The expected mask comes from the
definition (a heap, one key after another), not from the code that makes plans.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmabench.gates.numeric import Floors, Verdict, budgets, fault, judge, poison
from dmabench.kernels import Plan, reference
from dmabench.kernels.lifetimes import eviction_times_by_heap
from dmabench.workload.inputs import Inputs
from dmabench.workload.membership import Lifetimes, sample_rows, wrong_rows

__all__ = ["Gate", "Verdict"]

ALL_ROWS = 8192
"""Up to this length every query is compared; above it SAMPLED of them (those of dout that are not zero)."""
SAMPLED = 1024

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, Plan | None], Tensor]
NAMES = ("out", "dq", "dk", "dv", "ddelta")


@dataclass(frozen=True)
class Expected:
    """The right answers for one function, window and delta, and what they cost in the row's dtype."""

    delta: Tensor | None
    """What the attention is called with; None for functions that take none."""
    mask: Lifetimes
    rows: Tensor
    dout: Tensor
    exact: dict[str, Tensor]
    budgets: dict[str, float]
    floors: Floors


class Gate:
    """Checks the attentions of one shape; answers are computed once and serve all backends."""

    def __init__(self, inputs: Inputs, backward: bool):
        self.inputs, self.backward = inputs, backward
        self._expected: dict[tuple, Expected] = {}

    def check(
        self,
        attention: Attention,
        function: str,
        window: int | None,
        delta_name: str | None,
        plan: Plan | None,
    ) -> Verdict:
        """Both halves for one attention: (q, k, v, delta, plan) -> out.

        Args:
            function: "dma", "dense" or "swa"; decides the mask that is right.
            plan: the plan the attention is called with.
        """
        expected = self._expect(function, window, delta_name)
        verdict = self._numeric(attention, plan, expected)
        if verdict.wrong:
            return verdict
        inputs = self.inputs
        wrong = wrong_rows(
            attention,
            inputs.q,
            inputs.k,
            function == "dma",
            plan,
            expected.mask,
            inputs.scale,
            self.backward,
            inputs.shape.seed,
        )
        return Verdict(verdict.error, verdict.budget, wrong)

    def recheck(
        self,
        attention: Attention,
        function: str,
        window: int | None,
        delta_name: str | None,
        plan: Plan | None,
    ) -> Verdict:
        """The numeric half again, after timing: a kernel that has begun to return something else fails too."""
        return self._numeric(attention, plan, self._expect(function, window, delta_name))

    def _expect(self, function: str, window: int | None, delta_name: str | None) -> Expected:
        key = (function, window, delta_name)
        if key not in self._expected:
            self._expected[key] = self._compute(function, window, delta_name)
        return self._expected[key]

    def _compute(self, function: str, window: int | None, delta_name: str | None) -> Expected:
        inputs = self.inputs
        delta, mask = self.mask(function, window, delta_name)
        T = inputs.shape.seqlen
        rows = torch.arange(T, device=delta.device)
        if T > ALL_ROWS:
            rows = sample_rows(mask, SAMPLED, inputs.shape.seed)
        dout = torch.zeros_like(inputs.dout)
        dout[:, :, rows] = inputs.dout[:, :, rows]
        exact = self._reference(torch.float64, None, delta, mask, rows, dout, left=function == "dma")
        left = exact.pop("left", None)
        low_precision = None if inputs.dtype == torch.float32 else inputs.dtype
        low = self._reference(torch.float32, low_precision, delta, mask, rows, dout)
        groups = inputs.shape.heads // inputs.shape.kv_heads
        summed = groups * (torch.searchsorted(rows, mask.evict.long()) - torch.searchsorted(rows, mask.birth.long()))
        floors = Floors(summed, self._rounding(exact["out"], dout[:, :, rows]), left)
        allowed = budgets(low, exact, inputs.dtype, inputs.shape.head_dim, floors)
        return Expected(delta if function == "dma" else None, mask, rows, dout, exact, allowed, floors)

    def mask(self, function: str, window: int | None, delta_name: str | None) -> tuple[Tensor, Lifetimes]:
        """delta [B, G, T] (zeros where the function has none) and the lifetimes by definition."""
        shape = self.inputs.shape
        B, G, T = shape.batch, shape.kv_heads, shape.seqlen
        position = torch.arange(T, dtype=torch.int32, device=shape.device)
        if function == "dma":
            assert window is not None and delta_name is not None
            delta = self.inputs.delta(delta_name, window)
            evict = eviction_times_by_heap(delta, window, self.inputs.key_mask)
            return delta, Lifetimes(position.expand(B, G, T), evict, window)
        zeros = torch.zeros(B, G, T, device=shape.device)
        reach = T if window is None else min(window, T)
        return zeros, Lifetimes(position[None, None], (position + reach).clamp(max=T)[None, None], reach)

    def _reference(
        self,
        precision: torch.dtype,
        rounding: torch.dtype | None,
        delta: Tensor,
        mask: Lifetimes,
        rows: Tensor,
        dout: Tensor,
        left: bool = False,
    ) -> dict[str, Tensor]:
        """Output and gradients, and if asked for `left`, which is Floors.left."""
        inputs = self.inputs
        tensors = (inputs.q[:, :, rows], inputs.k, inputs.v, delta)
        leaves = [x.detach().to(precision).requires_grad_(self.backward) for x in tensors]
        q, k, v, delta = leaves
        birth, evict = (x.expand(delta.shape) for x in (mask.birth, mask.evict))
        out, _ = reference.attend(q, k, v, delta, birth, evict, inputs.scale, rows, rounding)
        found = {"out": _stored(out.detach(), inputs.dtype, rounding)}
        if self.backward:
            grads = torch.autograd.grad(out, leaves, dout[:, :, rows].to(precision), retain_graph=left)
            for name, grad in zip(NAMES[1:], grads, strict=True):
                found[name] = grad if name == "ddelta" else _stored(grad, inputs.dtype, rounding)
            if left:
                # Each row's rounding reaches a key with the row's probability of it, and signs are random: squares add
                # up. The gradient of v sums probabilities times what stands in dout, here in its first column.
                squares = torch.zeros_like(out)
                squares[..., 0] = self._rounding(found["out"], dout[:, :, rows]).square()
                (summed,) = torch.autograd.grad(out, v, squares)
                found["left"] = summed[..., 0].sqrt()
        return found

    def _rounding(self, out: Tensor, dout: Tensor) -> Tensor:
        """|dout (rounded out - out)| of each row."""
        return (dout * (out.to(self.inputs.dtype).to(out.dtype) - out)).norm(dim=-1)

    def _numeric(self, attention: Attention, plan: Plan | None, expected: Expected) -> Verdict:
        inputs, rows, delta = self.inputs, expected.rows, expected.delta
        leaves = [inputs.q, inputs.k, inputs.v] + ([delta] if delta is not None else [])
        poison(leaves)
        found: dict[str, Tensor] = {}
        if self.backward:
            leaves = [x.detach().requires_grad_() for x in leaves]
            q, k, v = leaves[:3]
            out = attention(q, k, v, leaves[3] if delta is not None else None, plan)
            poison(leaves)
            grads = torch.autograd.grad(out, leaves, expected.dout)
            found = dict(zip(NAMES[1:], grads, strict=False))
            quiet = torch.ones(inputs.shape.seqlen, dtype=torch.bool, device=out.device)
            quiet[rows] = False
            stray = found["dq"][:, :, quiet]
            if stray.numel() and not bool((stray == 0).all()):
                return Verdict(float("inf"), 0.0, "dq is not zero for queries whose output gradient is zero")
            found["dq"] = found["dq"][:, :, rows]
        else:
            with torch.no_grad():
                out = attention(inputs.q, inputs.k, inputs.v, delta, plan)
        wrong = fault(out, inputs.q.shape, inputs.dtype)
        if wrong is not None:
            return wrong
        found["out"] = out.detach()[:, :, rows]
        dtype, head_dim = inputs.dtype, inputs.shape.head_dim
        return judge(found, expected.exact, expected.budgets, dtype, head_dim, expected.floors)


def _stored(x: Tensor, dtype: torch.dtype, rounding: torch.dtype | None) -> Tensor:
    """A low-precision answer is rounded to the dtype it is returned in; an exact one is left alone."""
    return x if rounding is None else x.to(dtype).to(x.dtype)
