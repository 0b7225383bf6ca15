"""The numeric half of the correctness gate: how far is x from its float64 value, and how far may it be?"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CANCELS = ("dq", "dk", "ddelta", "dq_nope", "dq_rope", "dk_rope", "dup_k", "dwq", "dwk", "dwg", "dweight", "dgate")
"""Gradients made from dout v - dout out, which is exactly zero for a query with one live key."""
WHOLE = ("dgate", "dweight", "dnorm")
"""Sums over all tokens with few entries: compared as one vector, since the error of a single entry is luck."""
NOISE = 2**-16
"""What a kernel that accumulates in fp32 may leave of such a difference, as a part of what is subtracted."""


@dataclass(frozen=True)
class Verdict:
    """What the gate found. `wrong` is a sentence, or None when both halves passed."""

    error: float
    """The largest error over its budget decides; this is that error."""
    budget: float
    wrong: str | None


@dataclass(frozen=True)
class Floors:
    """What any kernel must leave of gradients that cancel, beside which no error counts."""

    summed: Tensor | None = None
    """How many queries attend to each key, int, of the shape of ddelta: what is left of as many differences adds up
    like a random walk, by the root of their number."""
    rounding: Tensor | None = None
    """[B, H, rows]: |dout (rounded out - out)|, what is left of a row's difference where the backward reads the output
    in the dtype in which it is stored, and nearly all weight is on one key. A dq off by twice that is in budget."""
    left: Tensor | None = None
    """What of that reaches ddelta, of whose shape it is: a standard deviation, at most. A key that has nearly all the
    weight of a thousand rows gets that of all of them, and little else. A ddelta off by twice that is in budget."""


NO_FLOORS = Floors()


def row_error(
    name: str, x: Tensor, exact: Tensor, dtype: torch.dtype, head_dim: int, floors: Floors = NO_FLOORS
) -> float:
    """max over rows of |x - exact| / (|exact| + rms row norm); a row is a vector along the last axis, for ddelta one
    number, for the names in WHOLE all of it.

    Where every query has one live key, the gradients that cancel are zero and all that is computed is noise. So
    their rms counts as at least what makes noise smaller than the budget: q, k, v and dout are standard normal, and
    the scale makes |dout v| and the rows of dq and dk about sqrt(D) where nothing cancels. `floors` says more.
    """
    x, exact = x.double(), exact.double()
    if name in WHOLE:
        x, exact = x.flatten(), exact.flatten()
    elif name == "ddelta":
        x, exact = x[..., None], exact[..., None]
    size = exact.norm(dim=-1)
    least = 1e-300
    if name in CANCELS:
        eps = torch.finfo(dtype).eps
        least = min(1.0, NOISE / (8 * eps)) * head_dim**0.5
    typical = size.square().mean().sqrt()
    floor = torch.tensor(least, dtype=size.dtype, device=size.device)
    if name in ("dk", "ddelta") and floors.summed is not None and bool(typical < least):
        floor = least * floors.summed.clamp(min=1).sqrt()
    elif name == "dq" and floors.rounding is not None:
        floor = floor.maximum(floors.rounding / (4 * torch.finfo(dtype).eps))
    if name == "ddelta" and floors.left is not None:
        floor = floor.maximum(floors.left / (4 * torch.finfo(dtype).eps))
    typical = typical.maximum(floor)
    worst = ((x - exact).norm(dim=-1) / (size + typical)).max()
    return float(worst) if bool(worst.isfinite()) else float("inf")


def budgets(
    low: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype,
    head_dim: int,
    floors: Floors = NO_FLOORS,
) -> dict[str, float]:
    """2 e(low) + 8 eps for each name, `low` being what a plain computation in the row's dtype gives; at most
    4 sqrt(eps): beyond that it is the plain computation that is wrong.

    The largest error over all rows comes from a few early ones, where dp - delta cancels, and is luck: in bf16 at
    T = 2048, e(low) of ddelta was 0.003 for one seed and 0.014 for the next. Hence the second term.
    """
    eps = torch.finfo(dtype).eps
    most = 4 * eps**0.5
    errors = {name: row_error(name, low[name], exact[name], dtype, head_dim, floors) for name in exact}
    return {name: min(most, 2 * error + 8 * eps) for name, error in errors.items()}


def judge(
    found: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    allowed: Mapping[str, float],
    dtype: torch.dtype,
    head_dim: int,
    floors: Floors = NO_FLOORS,
) -> Verdict:
    """The error that is the largest beside its budget."""
    errors = {name: row_error(name, x, exact[name], dtype, head_dim, floors) for name, x in found.items()}
    worst = max(errors, key=lambda name: errors[name] / allowed[name] if allowed[name] else float("inf"))
    error, budget = errors[worst], allowed[worst]
    wrong = None if error <= budget else f"{worst} is off by {error:.2e}, budget {budget:.2e}"
    return Verdict(error, budget, wrong)


def fault(out: Tensor, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Verdict | None:
    """A verdict on what no comparison of values is needed for: another shape or dtype, NaN, infinities."""
    if out.shape != shape or out.dtype != dtype:
        return Verdict(float("inf"), 0.0, f"out is {out.dtype} {tuple(out.shape)}")
    if not bool(out.isfinite().all()):
        return Verdict(float("inf"), 0.0, "out has NaN or infinite values")
    return None


def poison(like: list[Tensor]) -> None:
    """Leave NaN in the memory that the next outputs will be given, so that an element nobody writes shows."""
    poison = [torch.full_like(x, float("nan")) for x in like for _ in range(2)]
    del poison
