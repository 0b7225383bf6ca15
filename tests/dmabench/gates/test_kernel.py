"""The gate lets the right function through and reports every seeded fault, forward and backward."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import dmabench.gates.kernel
from dmabench.gates.kernel import Gate, Verdict
from dmabench.kernels import Plan, dynamic_mask_attention, make_plan, registry
from dmabench.kernels.lifetimes import eviction_times
from dmabench.workload.cells import Shape
from dmabench.workload.inputs import PADDINGS, Inputs

WINDOW = 40


def _shape(pass_: str, dtype: str = "fp32", seqlen: int = 300) -> Shape:
    return Shape(pass_, "kernel", seqlen, 2, 4, 2, 32, dtype, 0, "cpu")


@pytest.fixture(scope="module")
def gates() -> Callable[[str, str], Gate]:
    made: dict[tuple[str, str], Gate] = {}

    def get(pass_: str, dtype: str = "fp32") -> Gate:
        if (pass_, dtype) not in made:
            made[pass_, dtype] = Gate(Inputs(_shape(pass_, dtype)), pass_ != "fwd")
        return made[pass_, dtype]

    return get


def right(q: Tensor, k: Tensor, v: Tensor, delta: Tensor, plan: Plan, scale: float | None = None) -> Tensor:
    return dynamic_mask_attention(q, k, v, delta, plan.window, plan=plan, backend="reference", scale=scale)


def with_evict(plan: Plan, change: Callable[[Tensor], Tensor]) -> Plan:
    return Plan(plan.window, plan.query_len, change(plan.evict_BGT), plan.finite)


def _later(evict: Tensor) -> Tensor:
    return torch.where(evict < evict.shape[-1], evict + 1, evict)


def _earlier(evict: Tensor) -> Tensor:
    return torch.where(evict > torch.arange(evict.shape[-1]) + 1, evict - 1, evict)


def _one_key(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(evict: Tensor) -> Tensor:
        changed = evict.clone()
        position = torch.arange(evict.shape[-1])
        candidates = ((evict[1, 1] > position + 3) & (evict[1, 1] < evict.shape[-1])).nonzero()
        key = candidates[len(candidates) // 2]
        changed[1, 1, key] = change(evict)[1, 1, key]
        return changed

    return apply


class _Gradient(torch.autograd.Function):
    """Identity forward; the gradient is passed through `change`."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def _swapped_groups(q: Tensor) -> Tensor:
    """Query head h reads key/value head h % G instead of h // (H/G)."""
    return q.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _future(q, k, v, delta, plan):
    """Each query also sees the next key."""
    shifted = Plan(plan.window, plan.query_len, plan.evict_BGT, plan.finite)
    position = torch.arange(plan.key_len, dtype=torch.int32).clamp(min=1) - 1
    shifted.__dict__["birth_BGT"] = position.expand_as(plan.evict_BGT)
    return right(q, k, v, delta, shifted)


def _global_choice(q, k, v, delta, plan):
    """One top-w over the whole sequence, as the authors' code has done since 2025-10."""
    best = delta.topk(plan.window, dim=-1).indices
    evict = torch.zeros_like(plan.evict_BGT).scatter(-1, best, plan.key_len)
    return right(q, k, v, delta, with_evict(plan, lambda _: evict))


def _tail(value: float) -> Callable[..., Tensor]:
    def attention(q, k, v, delta, plan):
        out = right(q, k, v, delta, plan).clone()
        out[:, :, -3:] = value
        return out

    return attention


def _wrapped_offset(q, k, v, delta, plan):
    """The last batch's last head reads the first one's keys, as an offset that overflowed would."""
    k = k.clone()
    k[-1, -1] = k[0, 0]
    return right(q, k, v, delta, plan)


def _tie_to_the_earlier(q, k, v, delta, plan):
    """Among equal deltas the earlier position wins."""
    epsilon = torch.arange(plan.key_len) * -1e-9
    evict = eviction_times(delta.double() + epsilon, plan.window)
    return right(q, k, v, delta, with_evict(plan, lambda _: evict))


FORWARD: dict[str, Callable[..., Tensor]] = {
    "eviction one late": lambda q, k, v, d, p: right(q, k, v, d, with_evict(p, _later)),
    "eviction one early": lambda q, k, v, d, p: right(q, k, v, d, with_evict(p, _earlier)),
    "one key evicted one late": lambda q, k, v, d, p: right(q, k, v, d, with_evict(p, _one_key(_later))),
    "one key evicted one early": lambda q, k, v, d, p: right(q, k, v, d, with_evict(p, _one_key(_earlier))),
    "a look into the future": _future,
    "ranks in bf16": lambda q, k, v, d, p: right(q, k, v, d, _same_mask_as(d.bfloat16().float(), p)),
    "wrong group map": lambda q, k, v, d, p: right(_swapped_groups(q), k, v, d, p),
    "lost scale": lambda q, k, v, d, p: right(q, k, v, d, p, scale=1.0),
    "lost bias": lambda q, k, v, d, p: right(q, k, v, torch.zeros_like(d), p),
    "bias twice": lambda q, k, v, d, p: right(q, k, v, 2 * d, p),
    "offset overflow": _wrapped_offset,
    "unwritten tail": _tail(float("nan")),
    "zero tail": _tail(0.0),
    "stale plan": lambda q, k, v, d, p: right(q, k, v, d, _same_mask_as(d.roll(7, -1), p)),
    "plan of another head": lambda q, k, v, d, p: right(q, k, v, d, with_evict(p, lambda e: e.flip(1))),
    "global top-w": _global_choice,
    "window one too large": lambda q, k, v, d, p: right(q, k, v, d, make_plan(d, p.window + 1)),
    "window one too small": lambda q, k, v, d, p: right(q, k, v, d, make_plan(d, p.window - 1)),
    "values out of step with keys": lambda q, k, v, d, p: right(q, k, v.roll(1, 2), d, p),
    "queries one late": lambda q, k, v, d, p: right(q.roll(1, 2), k, v, d, p),
    "two heads swapped": lambda q, k, v, d, p: right(q, k, v, d, p)[:, [1, 0, 2, 3]],
    "wrong dtype": lambda q, k, v, d, p: right(q, k, v, d, p).double(),
}


def _same_mask_as(delta: Tensor, plan: Plan) -> Plan:
    return make_plan(delta, plan.window)


def _tampered(which: str, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def attention(q, k, v, delta, plan):
        tensors = {"q": q, "k": k, "v": v, "delta": delta}
        tensors[which] = _Gradient.apply(tensors[which], change)
        return right(tensors["q"], tensors["k"], tensors["v"], tensors["delta"], plan)

    return attention


def _zero(part: tuple) -> Callable[[Tensor], Tensor]:
    def change(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[part] = 0
        return grad

    return change


def _nan_tail(grad: Tensor) -> Tensor:
    grad = grad.clone()
    grad[..., -1, :] = float("nan")
    return grad


class _OtherMaskInBackward(torch.autograd.Function):
    """Forward with the plan, backward with another one."""

    @staticmethod
    def forward(ctx, q, k, v, delta, plan, other):
        ctx.save_for_backward(q, k, v, delta)
        ctx.other = other
        return right(q, k, v, delta, plan)

    @staticmethod
    def backward(ctx, dout):
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = right(*leaves, ctx.other)
        return *torch.autograd.grad(out, leaves, dout), None, None


BACKWARD: dict[str, Callable[..., Tensor]] = {
    "lost ddelta": _tampered("delta", torch.zeros_like),
    "ddelta of half the heads": _tampered("delta", lambda g: g / 2),
    "ddelta of one key lost": _tampered("delta", lambda g: _zero((1, 1, int(g[1, 1].abs().argmax())))(g)),
    "dq without scale": _tampered("q", lambda g: g * 32**0.5),
    "dk of one head of a group": _tampered("k", lambda g: g / 2),
    "dk without scale": _tampered("k", lambda g: g * 32**0.5),
    "dv of a tile lost": _tampered("v", _zero((..., slice(0, 64), slice(None)))),
    "dv of one key lost": _tampered("v", _zero((0, 0, 17))),
    "unwritten end of dq": _tampered("q", _nan_tail),
    "unwritten end of dk": _tampered("k", _nan_tail),
    "dk and dv of another head": _tampered("v", lambda g: g.flip(1)),
    "eviction one late in the backward": lambda q, k, v, d, p: _OtherMaskInBackward.apply(
        q, k, v, d, p, with_evict(p, _later)
    ),
    "eviction one early in the backward": lambda q, k, v, d, p: _OtherMaskInBackward.apply(
        q, k, v, d, p, with_evict(p, _earlier)
    ),
}


def _check(gate: Gate, attention: Callable[..., Tensor], delta: str = "iid") -> Verdict:
    return gate.check(attention, "dma", WINDOW, delta, gate.inputs.plan(delta, WINDOW))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", FORWARD)
def test_a_forward_fault_is_incorrect(gates, fault, dtype):
    assert _check(gates("fwd", dtype), FORWARD[fault]).wrong


@pytest.mark.parametrize("fault", BACKWARD)
def test_a_backward_fault_is_incorrect(gates, fault):
    assert _check(gates("bwd"), BACKWARD[fault]).wrong


@pytest.mark.parametrize("fault", ["eviction one late in the backward", "eviction one early in the backward"])
def test_a_backward_mask_that_is_off_by_one_shows_in_bf16_too(gates, fault):
    assert _check(gates("bwd", "bf16"), BACKWARD[fault]).wrong


def test_a_wrong_tie_is_incorrect(gates):
    gate = gates("fwd")
    assert not _check(gate, right, "constant").wrong
    assert _check(gate, _tie_to_the_earlier, "constant").wrong


def test_there_are_at_least_twenty_faults():
    assert len(FORWARD) + len(BACKWARD) >= 20


def test_only_counting_keys_finds_a_key_kept_one_too_long_in_bf16(gates):
    """Why the second half exists: the numeric half alone lets this through."""
    gate = gates("fwd", "bf16")
    plan = gate.inputs.plan("iid", WINDOW)
    fault = FORWARD["one key evicted one late"]
    assert not gate.recheck(fault, "dma", WINDOW, "iid", plan).wrong
    assert "counts" in gate.check(fault, "dma", WINDOW, "iid", plan).wrong


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("delta", ["iid", "rising", "constant", "clustered"])
def test_the_right_function_passes(gates, dtype, delta):
    verdict = _check(gates("fwd+bwd", dtype), right, delta)
    assert verdict.wrong is None
    assert 0 <= verdict.error <= verdict.budget


@pytest.mark.parametrize(("dtype", "noise", "fault"), [("bf16", 2**-18, 2**-14), ("fp32", 2**-22, 2**-17)])
def test_noise_where_gradients_cancel_is_judged_by_what_is_subtracted(dtype, noise, fault):
    """With one live key a query, dq, dk and ddelta are zero; sums in another order leave something in their place."""
    inputs = Inputs(_shape("bwd", dtype, seqlen=130))
    gate, plan = Gate(inputs, backward=True), inputs.plan("iid", 1)
    for which in ("q", "k", "delta"):
        size = 32**0.5 if which == "delta" else 1.0  # so that rows have equal norms
        little, much = (_tampered(which, partial(torch.add, other=x * size)) for x in (noise, fault))
        assert not gate.recheck(little, "dma", 1, "iid", plan).wrong
        assert f"d{which} is off by" in (gate.recheck(much, "dma", 1, "iid", plan).wrong or "")


def test_what_rounded_outputs_leave_of_ddelta_is_summed_over_rows_and_heads(gates):
    gate = gates("bwd", "bf16")
    inputs, plan = gate.inputs, gate.inputs.plan("rising", WINDOW)
    expected = gate._expect("dma", WINDOW, "rising")
    q, k, dout, out = (x.double() for x in (inputs.q, inputs.k, inputs.dout, expected.exact["out"]))
    delta = inputs.delta("rising", WINDOW).double().repeat_interleave(2, 1)
    evict = plan.evict_BGT.repeat_interleave(2, 1)[..., None, :]
    at = torch.arange(300)
    live = (at <= at[:, None]) & (at[:, None] < evict)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * inputs.scale + delta[..., None, :]
    probabilities = scores.masked_fill(~live, float("-inf")).softmax(-1)
    rounding = (dout * (out.bfloat16().double() - out)).norm(dim=-1)
    right = (probabilities * rounding[..., None].square()).sum(-2).unflatten(1, (2, 2)).sum(2).sqrt()
    torch.testing.assert_close(expected.floors.left, right)
    assert "left" not in expected.exact and right.max() > 10 * right.mean()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("seqlen", [1, 300])
def test_padding_is_part_of_the_function(padding, seqlen):
    """Left or right, and a row of the batch that is nothing but padding."""
    inputs = Inputs(replace(_shape("bwd", seqlen=seqlen), batch=3), padding=padding)
    gate = Gate(inputs, backward=True)
    plan = inputs.plan("iid", WINDOW)
    assert not plan.live_BGT[2].any() and bool(plan.live_BGT[0].any()) == (seqlen > 1)
    assert not gate.check(right, "dma", WINDOW, "iid", plan).wrong
    unpadded = make_plan(inputs.delta("iid", WINDOW), WINDOW)
    assert gate.check(lambda q, k, v, d, p: right(q, k, v, d, unpadded), "dma", WINDOW, "iid", plan).wrong

    def counted(q, k, v, delta, plan):
        """Padded keys are not attended, but take places in the window."""
        evict = torch.where(inputs.key_mask[:, None], unpadded.evict_BGT, plan.evict_BGT)
        return right(q, k, v, delta, with_evict(plan, lambda _: evict))

    if seqlen > WINDOW:
        assert gate.check(counted, "dma", WINDOW, "iid", plan).wrong


@pytest.mark.parametrize("backend_id", ["dense/sdpa-flash", "dense/sdpa-math"])
def test_dense_backends_pass_and_a_wrong_mask_does_not(gates, backend_id):
    gate = gates("fwd+bwd")
    attend = registry.get(backend_id).attend
    scale = gate.inputs.scale
    assert not gate.check(lambda q, k, v, d, p: attend(q, k, v, scale=scale), "dense", None, None, None).wrong
    full = torch.nn.functional.scaled_dot_product_attention
    assert gate.check(lambda q, k, v, d, p: full(q, k, v, enable_gqa=True), "dense", None, None, None).wrong
    assert gate.check(lambda q, k, v, d, p: attend(q, k, v, scale=scale), "swa", WINDOW, None, None).wrong


def test_long_sequences_are_checked_on_sampled_rows(monkeypatch):
    monkeypatch.setattr(dmabench.gates.kernel, "ALL_ROWS", 1000)
    monkeypatch.setattr(dmabench.gates.kernel, "SAMPLED", 256)
    inputs = Inputs(replace(_shape("bwd", seqlen=1500), batch=1, heads=1, kv_heads=1, head_dim=16))
    gate = Gate(inputs, backward=True)
    plan = inputs.plan("iid", WINDOW)
    assert not gate.check(right, "dma", WINDOW, "iid", plan).wrong
    assert gate.check(BACKWARD["eviction one late in the backward"], "dma", WINDOW, "iid", plan).wrong

    def last_row(q, k, v, delta, plan):
        out = right(q, k, v, delta, plan).clone()
        out[:, :, -1] *= 1.5
        return out

    assert gate.check(last_row, "dma", WINDOW, "iid", plan).wrong
