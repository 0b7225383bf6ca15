"""The gate of latent and native sparse attention and of layers: right ones pass, every seeded fault is reported."""

from dataclasses import replace

import pytest
import torch

import dmabench.gates.levels
from dmabench.gates.levels import decisive
from dmabench.gates.numeric import Verdict
from dmabench.gates.of_shape import Gates
from dmabench.kernels import registry
from dmabench.kernels.native_sparse import Settings, compress
from dmabench.kernels.native_sparse.reference import select_blocks
from dmabench.workload import layers
from dmabench.workload.attentions import Attention
from dmabench.workload.cells import Cell, Shape
from dmabench.workload.inputs import Inputs
from dmabench.workload.levels import level_of

WINDOW = 48
REFERENCES = {"dma": "reference", "dense": "sdpa-math", "mla": "expanded", "nsa": "reference"}


def _check(
    function: str, attend=None, level: str = "kernel", pass_: str = "fwd", dtype: str = "fp32", seqlen: int = 200
) -> Verdict:
    """The verdict on a backend that calls `attend`, by default a right one."""
    shape = Shape(pass_, level, seqlen, 2, 4, 2, 16, dtype, 0, "cpu")
    backend = registry.get(f"{function}/{REFERENCES[function]}")
    if attend is not None:
        backend = replace(backend, name="faulty", attend=lambda *a, **k: attend(backend_attend, *a, **k))
    backend_attend = registry.get(f"{function}/{REFERENCES[function]}").attend
    window = None if function in ("dense", "mla") else WINDOW
    attention = Attention(backend, Cell(function, backend.name, shape, window, "iid" if function == "dma" else None))
    inputs = Inputs(shape)
    plan = inputs.plan("iid", WINDOW) if function == "dma" else None
    return Gates(inputs).level.check(level_of(attention, inputs), plan)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("function", "level"),
    [("mla", "kernel"), ("nsa", "kernel"), ("dma", "layer"), ("dense", "layer"), ("mla", "layer"), ("nsa", "layer")],
)
def test_the_right_function_passes(function, level, dtype):
    verdict = _check(function, level=level, pass_="bwd", dtype=dtype)
    assert verdict.wrong is None and 0 < verdict.error < verdict.budget


@pytest.mark.parametrize(
    ("function", "seqlen"), [("dense", 1), ("dma", 1), ("mla", 1), ("mla", 2), ("mla", 17), ("nsa", 17), ("nsa", 64)]
)
def test_short_sequences_pass(function, seqlen):
    for level in ("kernel", "layer"):
        assert _check(function, level=level, pass_="bwd", seqlen=seqlen).wrong is None, level


class _Gradient(torch.autograd.Function):
    """Identity forward; the gradient is passed through `change`."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def _settings(**changes):
    return lambda right, *args, settings, **rest: right(*args, settings=replace(settings, **changes), **rest)


def _scaled(right, *args, scale, **rest):
    return right(*args, scale=1.01 * scale, **rest)


def _latent(change):
    def faulty(right, q_nope, q_rope, latent, k_rope, up_k, up_v, *, scale):
        return right(*change(q_nope, q_rope, latent, k_rope, up_k, up_v), scale=scale)

    return faulty


LATENT_FAULTS = {
    "a lost scale": _scaled,
    "no rotary part": _latent(lambda qn, qr, c, kr, uk, uv: (qn, 0 * qr, c, kr, uk, uv)),
    "the first head's keys for all": _latent(lambda qn, qr, c, kr, uk, uv: (qn, qr, c, kr, uk[:1].expand_as(uk), uv)),
    "the first head's values for all": _latent(lambda qn, qr, c, kr, uk, uv: (qn, qr, c, kr, uk, uv[:1].expand_as(uv))),
    "a look into the future": _latent(lambda qn, qr, c, kr, uk, uv: (qn, qr, c.roll(-1, 1), kr.roll(-1, 1), uk, uv)),
}
SPARSE_FAULTS = {
    "a lost scale": _scaled,
    "one block too few": _settings(select_count=3),
    "a window one short": _settings(window=15),
    "a window one long": _settings(window=17),
    "gates of another branch": lambda right, q, k, v, *, gates, **rest: right(q, k, v, gates=gates.roll(1, -1), **rest),
    "heads that do not share": lambda right, q, k, v, **rest: right(q, k.flip(1), v, **rest),
    "a look into the future": lambda right, q, k, v, **rest: right(q, k.roll(-1, 2), v.roll(-1, 2), **rest),
}


@pytest.mark.parametrize("name", list(LATENT_FAULTS))
def test_faults_of_latent_attention_are_reported(name):
    assert _check("mla", LATENT_FAULTS[name]).wrong is not None


@pytest.mark.parametrize("name", list(SPARSE_FAULTS))
def test_faults_of_native_sparse_attention_are_reported(name):
    assert _check("nsa", SPARSE_FAULTS[name]).wrong is not None


def test_one_future_key_among_many_is_seen_where_numbers_pass():
    """In bf16 one key among 500 is within rounding, but outputs may not change at all."""

    def peeks(right, q_nope, q_rope, latent, k_rope, up_k, up_v, *, scale):
        out = right(q_nope, q_rope, latent, k_rope, up_k, up_v, scale=scale)
        ahead = (latent.roll(-1, 1) @ up_v.flatten(0, 1).mT).unflatten(-1, up_v.shape[:2]).transpose(1, 2)
        share = 0.01 * (torch.arange(latent.shape[1]) > 50)[:, None]
        return out + (share * ahead).to(out.dtype)

    assert "the future is seen" in (_check("mla", peeks, dtype="bf16", seqlen=500).wrong or "")


@pytest.mark.parametrize("position", range(6))
def test_a_wrong_gradient_of_each_input_of_latent_attention_is_reported(position):
    def faulty(right, *args, **rest):
        args = list(args)
        args[position] = _Gradient.apply(args[position], lambda grad: 0.99 * grad)
        return right(*args, **rest)

    assert "is off by" in (_check("mla", faulty, pass_="bwd").wrong or "")


@pytest.mark.parametrize("position", range(4))
def test_a_wrong_gradient_of_each_input_of_native_sparse_attention_is_reported(position):
    def faulty(right, q, k, v, *, gates, **rest):
        args = [q, k, v, gates]
        args[position] = _Gradient.apply(args[position], lambda grad: 0.99 * grad)
        return right(*args[:3], gates=args[3], **rest)

    assert "is off by" in (_check("nsa", faulty, pass_="bwd").wrong or "")


def test_a_lost_gradient_of_the_importance_is_reported_in_a_layer():
    def faulty(right, q, k, v, *, delta, **rest):
        return right(q, k, v, delta=delta.detach(), **rest)

    assert "is off by" in (_check("dma", faulty, level="layer", pass_="bwd").wrong or "")


def test_a_layer_in_another_precision_than_it_says_is_reported(monkeypatch):
    output = layers.output
    monkeypatch.setattr(layers, "output", lambda weights, out: output(weights, out).float())
    assert "out is torch.float32" in (_check("dense", level="layer", dtype="bf16").wrong or "")


def test_an_output_with_nan_is_reported():
    def faulty(right, *args, **rest):
        out = right(*args, **rest).clone()
        out[0, 0, 3, 0] = float("nan")
        return out

    assert "NaN" in (_check("mla", faulty).wrong or "")


@pytest.mark.parametrize(
    ("function", "level"), [("mla", "kernel"), ("nsa", "kernel"), ("mla", "layer"), ("nsa", "layer"), ("dma", "layer")]
)
def test_long_sequences_are_checked_on_sampled_rows(monkeypatch, function, level):
    monkeypatch.setattr(dmabench.gates.levels, "ALL_ROWS", 100)
    monkeypatch.setattr(dmabench.gates.levels, "SAMPLED", 64)
    assert _check(function, level=level, pass_="bwd", seqlen=300).wrong is None

    def faulty(right, *args, **rest):
        out = right(*args, **rest)
        out, *more = out if isinstance(out, tuple) else (out,)
        scale = torch.ones(300).index_fill(0, torch.arange(290, 300), 1.01)[:, None]  # the last rows are in the sample
        return (out * scale, *more) if more else out * scale

    assert "is off by" in (_check(function, faulty, level=level, seqlen=300).wrong or "")


def test_a_choice_is_decisive_where_rounding_cannot_change_it():
    """Two heads, one group, blocks of 4, of which 8 are selected."""
    settings = Settings(4, 4, 4, 8, 8)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 400, 16, generator=generator, dtype=torch.float64) for heads in (2, 1))
    rows = torch.arange(400)
    fine = decisive((q, k), (q, k), settings, 0.25, rows)
    assert fine.double().mean() > 0.98
    coarse = q.bfloat16(), k.bfloat16()
    some = decisive((q, k), coarse, settings, 0.25, rows)
    assert bool(some[..., :32].all()) and 0.3 < some.double().mean() < 0.98  # eight blocks are all selected
    assert torch.equal(some, decisive((q, k), coarse, settings, 0.25, rows, at_once=7))
    chosen, rounded = (select_blocks(x, compress(y, settings), 400, settings, 0.25) for x, y in ((q, k), coarse))
    same = (chosen.sort(-1).values == rounded.sort(-1).values).all(-1)
    assert bool(same[some].all()) and not bool(same.all())
