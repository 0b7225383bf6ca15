"""The gate of what counting keys (workload/membership.py) does not fit: latent and native sparse attention, and layers.

Output and every gradient are compared with the definition in float64 (numeric.py), and no output of latent or native
sparse attention may move when later tokens change. Which keys are attended to is not counted: latent attention has the
mask of dense attention, native sparse attention chooses by the query, so that queries of zeros (with which one counts)
choose nothing in particular, and the kernels in layers are those that the kernel level counts.

Native sparse attention chooses the blocks of highest score, and rounding decides where two scores are nearly equal:
another choice, and no fault. So a query and group is compared where its choice is decisive: where the best block left
out is behind the worst one chosen by several times what rounding to the row's dtype was seen to move scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dmabench.gates.kernel import ALL_ROWS, SAMPLED, Gate
from dmabench.gates.numeric import Verdict, budgets, fault, judge, poison
from dmabench.kernels import Plan
from dmabench.kernels.native_sparse import Settings, compress
from dmabench.kernels.native_sparse.selection import block_scores
from dmabench.kernels.native_sparse.settings import LOCAL_BLOCKS
from dmabench.workload.attentions import QUERIES, Tensors
from dmabench.workload.levels import Kernel, Level
from dmabench.workload.membership import sample_rows

LEAST_MARGIN = 1e-4
"""Relative distance of two scores that float32 tells apart for certain."""
SAFETY = 4
"""How many times the largest error of a query's scores two of them must differ by."""


@dataclass(frozen=True)
class Expected:
    """The right answers of one function, window and delta, and what they cost in the row's dtype."""

    rows: Tensor
    keep: Tensor | None
    """[B, H, T, 1]: 1 where the output of nsa is compared; None compares all."""
    dout: Tensor
    exact: Tensors
    budgets: dict[str, float]


class LevelGate:
    """Checks the levels of one shape; answers are computed once and serve all backends."""

    def __init__(self, gate: Gate):
        self.gate, self.inputs, self.backward = gate, gate.inputs, gate.backward
        self._expected: dict[tuple, Expected] = {}

    def check(self, level: Level, plan: Plan | None) -> Verdict:
        """Numbers, and blindness to the future of what the kernel level does not count the keys of."""
        verdict = self.recheck(level, plan)
        if verdict.wrong or level.attention.function not in ("mla", "nsa"):
            return verdict
        return Verdict(verdict.error, verdict.budget, self._sees_the_future(level, plan))

    def recheck(self, level: Level, plan: Plan | None) -> Verdict:
        """The numeric half."""
        expected, inputs = self._expect(level), self.inputs
        leaves = level.leaves
        poison(list(leaves.values()))
        found: Tensors = {}
        if self.backward:
            leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
            out = level.forward(leaves, plan, expected.keep)
            poison(list(leaves.values()))
            found = _gradients(out, leaves, expected.dout)
            for name, rows, stray in _asked(level, found, expected.rows):
                if stray.numel() and not bool((stray == 0).all()):
                    what = f"{name} is not zero for queries whose output gradient is zero"
                    return Verdict(float("inf"), 0.0, what)
                found[name] = rows
        else:
            with torch.no_grad():
                out = level.forward(leaves, plan, expected.keep)
        wrong = fault(out, level.out_shape, inputs.dtype)
        if wrong is not None:
            return wrong
        found["out"] = out.detach().index_select(level.rows_axis, expected.rows)
        return judge(found, expected.exact, expected.budgets, inputs.dtype, inputs.shape.head_dim)

    def _expect(self, level: Level) -> Expected:
        cell = level.attention.cell
        key = (cell.function, cell.window, cell.delta)
        if key not in self._expected:
            self._expected[key] = self._compute(level)
        return self._expected[key]

    def _compute(self, level: Level) -> Expected:
        inputs, cell, attention = self.inputs, level.attention.cell, level.attention
        masked = "dense" if cell.function in ("mla", "nsa") else cell.function
        _, mask = self.gate.mask(masked, None if masked == "dense" else cell.window, cell.delta)
        rows = torch.arange(inputs.shape.seqlen, device=inputs.shape.device)
        if inputs.shape.seqlen > ALL_ROWS:
            rows = sample_rows(mask, SAMPLED, inputs.shape.seed)
        lifetimes = None if cell.function == "nsa" else (mask.birth, mask.evict)
        keep = None
        if cell.function == "nsa":
            wide = {name: x.detach().double() for name, x in level.leaves.items()}
            with torch.no_grad():
                exact_qk, rounded_qk = (level.queries_and_keys(leaves, rows) for leaves in (wide, level.leaves))
                chosen = decisive(exact_qk, rounded_qk, attention.settings, attention.scale, rows)
            shape = inputs.shape
            keep = torch.zeros(shape.batch, shape.heads, shape.seqlen, 1, dtype=inputs.dtype, device=shape.device)
            keep[:, :, rows] = chosen.repeat_interleave(shape.heads // shape.kv_heads, 1)[..., None].to(keep.dtype)
        drawn = inputs.normal("dout", *level.out_shape)
        dout = torch.zeros_like(drawn)
        dout.index_copy_(level.rows_axis, rows, drawn.index_select(level.rows_axis, rows))

        def answers(leaves: Tensors, rounding: torch.dtype | None) -> Tensors:
            leaves = {name: x.detach().requires_grad_(self.backward) for name, x in leaves.items()}
            kept = None if keep is None else keep[:, :, rows].to(next(iter(leaves.values())).dtype)
            out = level.define(leaves, rows, lifetimes, rounding, kept)
            found = {"out": out.detach()}
            if self.backward:
                grads = _gradients(out, leaves, dout.index_select(level.rows_axis, rows).to(out.dtype))
                found |= grads | {name: asked for name, asked, _ in _asked(level, grads, rows)}
            return found

        exact = answers({name: x.double() for name, x in level.leaves.items()}, None)
        low = answers(level.leaves, None if inputs.dtype == torch.float32 else inputs.dtype)
        return Expected(rows, keep, dout, exact, budgets(low, exact, inputs.dtype, inputs.shape.head_dim))

    def _sees_the_future(self, level: Level, plan: Plan | None) -> str | None:
        """A sentence if an output changes with tokens that come after it; the plan is the same in both calls."""
        T = self.inputs.shape.seqlen
        first = T // 2
        if first == 0:
            return None
        with torch.no_grad():
            before = level.forward(level.leaves, plan)
            changed = {name: _with_another_end(name, x, first, T, level) for name, x in level.leaves.items()}
            after = level.forward(changed, plan)
        earlier = torch.arange(first, device=before.device)
        before, after = (x.index_select(level.rows_axis, earlier) for x in (before, after))
        if torch.equal(before, after):
            return None
        rows = (before != after).movedim(level.rows_axis, 0).flatten(1).any(1).nonzero()
        return (
            f"the future is seen: with other tokens from position {first} on, {len(rows)} earlier outputs are others, "
            f"the first at position {int(rows[0])}"
        )


def decisive(
    exact: tuple[Tensor, Tensor],
    rounded: tuple[Tensor, Tensor],
    settings: Settings,
    scale: float,
    rows: Tensor,
    at_once: int = 1024,
) -> Tensor:
    """bool [B, G, R]: rounding cannot change which blocks the query selects.

    Args:
        exact: q [B, H, R, D] at positions `rows` and k [B, G, T, D], float64; rounded: the same in the row's dtype.
        at_once: queries whose scores are held at a time.
    """
    parts = []
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        ranked, low = (ranked_scores(q[:, :, part], k, settings, scale, rows[part]) for q, k in (exact, rounded))
        if ranked.shape[-1] <= settings.select_count:
            parts.append(torch.ones_like(ranked[..., 0], dtype=torch.bool))
            continue
        best = ranked.topk(settings.select_count + 1, -1).values
        last, left_out = best[..., -2], best[..., -1]
        parts.append(left_out.isneginf() | (left_out + tolerance(ranked, low) < (1 - LEAST_MARGIN) * last))
    return torch.cat(parts, 2)


def tolerance(ranked: Tensor, low: Tensor) -> Tensor:
    """How far two of a query's scores must be apart to be told apart, from the error of all of them."""
    return SAFETY * (low - ranked).abs().nan_to_num(0.0).amax(-1)  # infinite ones are the same in both


def ranked_scores(q: Tensor, k: Tensor, settings: Settings, scale: float, rows: Tensor) -> Tensor:
    """[B, G, R, S], what nsa ranks its S blocks by: their scores, summed over the heads of a group; infinite for those
    that are always selected, minus infinity for those that begin after the query. q [B, H, R, D], k [B, G, T, D]; in
    float64 but for the rounding of q, k and the compressed keys to their dtype."""
    q, kc = q.double(), compress(k, settings).double()
    i = rows[:, None]
    ends = settings.compress_block - 1 + settings.compress_stride * torch.arange(kc.shape[2], device=k.device)
    block = torch.arange(settings.selectable_len(k.shape[2]), device=k.device)
    scores = torch.einsum("bghrd,bgcd->bghrc", q.unflatten(1, (k.shape[1], -1)), kc) * scale
    scores = scores.masked_fill(ends > i, -torch.inf).softmax(-1).nan_to_num(0.0)  # none is complete: no score
    scores = block_scores(scores.sum(2), settings, len(block))
    own = i // settings.select_block
    always = (block == 0) | ((block <= own) & (block > own - LOCAL_BLOCKS))
    return torch.where(always, torch.inf, scores).masked_fill(block > own, -torch.inf)


def _gradients(out: Tensor, leaves: Tensors, dout: Tensor) -> Tensors:
    """By name, "d" before it. What plays no part (in a sequence of one token, say) has zeros."""
    grads = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
    return {
        f"d{name}": torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(leaves.items(), grads, strict=True)
    }


def _asked(level: Level, grads: Tensors, rows: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Gradients that have a row a query: name, the rows compared, and all others."""
    if not isinstance(level, Kernel):
        return
    others = torch.ones(level.inputs.shape.seqlen, dtype=torch.bool, device=rows.device)
    others[rows] = False
    for name in QUERIES:
        if (grad := grads.get(f"d{name}")) is not None:
            yield f"d{name}", grad[:, :, rows], grad[:, :, others]


def _with_another_end(name: str, x: Tensor, first: int, T: int, level: Level) -> Tensor:
    """Tokens from `first` on replaced by random ones, where the tensor has tokens."""
    axis = _token_axis(name, isinstance(level, Kernel))
    if axis is None:
        return x
    x = x.clone()
    end = x.narrow(axis, first, T - first)
    end.copy_(level.inputs.normal("another end", *end.shape))
    return x


def _token_axis(name: str, kernel: bool) -> int | None:
    if not kernel:
        return 1 if name == "hidden" else None
    return {"k": 2, "v": 2, "latent": 1, "k_rope": 1}.get(name)
