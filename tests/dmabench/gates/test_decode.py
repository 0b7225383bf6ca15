"""The gate of decoding reports every seeded fault, in float32 and where rounding would hide it."""

import pytest
import torch

from dmabench.gates.decode import DecodeGate, best
from dmabench.gates.numeric import Verdict
from dmabench.kernels import LiveKeys, Unsupported, make_plan, registry
from dmabench.workload import caches, layers
from dmabench.workload.attentions import Attention
from dmabench.workload.cells import Cell, Shape
from dmabench.workload.decoding import Decoding
from dmabench.workload.inputs import Inputs
from dmabench.workload.streams import Probe

WINDOW = 40
BACKENDS = {"dma": "live-keys", "dense": "sdpa-flash", "swa": "sdpa", "mla": "absorbed", "nsa": "reference"}


def _check(function: str, dtype: str = "fp32", seqlen: int = 300, level: str = "kernel", delta: str = "iid") -> Verdict:
    shape = Shape("decode", level, seqlen, 2, 4, 2, 32, dtype, 0, "cpu")
    window = None if function in ("dense", "mla") else WINDOW
    backend = registry.get(f"{function}/{BACKENDS[function]}")
    attention = Attention(backend, Cell(function, backend.name, shape, window, delta if function == "dma" else None))
    inputs = Inputs(shape)
    return DecodeGate(inputs).check(Decoding(attention, inputs))


@pytest.mark.parametrize("level", ["kernel", "layer"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("function", list(BACKENDS))
def test_the_right_step_passes(function, dtype, level):
    verdict = _check(function, dtype, 300, level)
    assert verdict.wrong is None and 0 < verdict.error < verdict.budget


@pytest.mark.parametrize("delta", ["rising", "falling", "constant", "clustered", "sawtooth"])
def test_the_right_step_passes_whatever_the_delta(delta):
    assert _check("dma", delta=delta).wrong is None


def _step_of_live_keys(change):
    """`decode_step` in plain operations, its parts open to change."""

    def step(cache: LiveKeys, q, k, v, delta, scale):
        change(cache, k, v, delta)
        return cache.attend(q, scale)

    return step


def _stale(cache, k, v, delta):
    cache.seen_BG += 1


def _keeps_what_is_evicted(cache, k, v, delta):
    """The second smallest goes in place of the smallest."""
    smallest = cache.delta_BGW.argmin(-1, keepdim=True)
    saved = cache.delta_BGW.clone()
    cache.delta_BGW.scatter_(-1, smallest, 1e9)
    cache.append(k, v, delta)
    cache.delta_BGW.copy_(torch.where(cache.delta_BGW == 1e9, saved, cache.delta_BGW))


def _rows_in_another_slot(cache, k, v, delta):
    """The key and value are written one slot away from delta and position."""
    before = cache.k_BGWD.clone(), cache.v_BGWD.clone(), cache.position_BGW.clone()
    cache.append(k, v, delta)
    written = (cache.position_BGW != before[2])[..., None]
    beside = written.roll(1, 2)
    for buffer, old, new in ((cache.k_BGWD, before[0], k), (cache.v_BGWD, before[1], v)):
        buffer.copy_(torch.where(beside, new.expand_as(buffer), old))


def _position_one_early(cache, k, v, delta):
    cache.seen_BG -= 1
    cache.append(k, v, delta)


def _lets_everyone_in(cache, k, v, delta):
    """A key that is dead on arrival takes the place of a live one."""
    cache.append(k, v, torch.full_like(delta, 1e9))
    cache.delta_BGW.copy_(torch.where(cache.delta_BGW == 1e9, delta, cache.delta_BGW))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "change",
    [_stale, _keeps_what_is_evicted, _rows_in_another_slot, _position_one_early, _lets_everyone_in],
)
def test_faults_of_live_keys_are_reported(monkeypatch, change, dtype):
    monkeypatch.setattr(caches, "decode_step", _step_of_live_keys(change))
    assert _check("dma", dtype).wrong is not None


def test_the_plain_step_that_the_faults_are_made_from_is_right(monkeypatch):
    step = _step_of_live_keys(lambda cache, k, v, delta: cache.append(k, v, delta))
    monkeypatch.setattr(caches, "decode_step", step)
    assert _check("dma").wrong is None


def test_a_lost_bias_and_a_lost_scale_are_reported(monkeypatch):
    def without_bias(cache, q, k, v, delta, scale):
        cache.append(k, v, delta)
        cache.delta_BGW.zero_()
        return cache.attend(q, scale)

    def without_scale(cache, q, k, v, delta, scale):
        cache.append(k, v, delta)
        return cache.attend(q, 1.0)

    for step in (without_bias, without_scale):
        monkeypatch.setattr(caches, "decode_step", step)
        assert "out is off by" in (_check("dma").wrong or "")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("function", "kind"), [("dense", "Growing"), ("swa", "Ring"), ("mla", "Latents"), ("nsa", "Summaries")]
)
def test_a_cache_that_the_new_token_is_not_written_to_is_reported(monkeypatch, function, kind, dtype):
    """In bf16 by counting alone: one value among hundreds is less than rounding may cost."""
    step = getattr(caches, kind).step
    nothing = {"dense": "k v", "swa": "k v", "mla": "latent k_rope", "nsa": "k v"}[function].split()

    def stale(self, attention, new):
        old = {name: torch.zeros_like(new[name]) for name in nothing}
        return step(self, attention, {**new, **old})

    monkeypatch.setattr(getattr(caches, kind), "step", stale)
    assert _check(function, dtype, 2000).wrong is not None


def test_a_value_that_is_not_written_is_reported_though_numbers_pass(monkeypatch):
    step = caches.Growing.step
    monkeypatch.setattr(
        caches.Growing, "step", lambda self, attention, new: step(self, attention, {**new, "v": 0 * new["v"]})
    )
    told = _check("dense", "bf16", 4000).wrong
    assert told is not None and "keys in a bucket" in told


def test_a_ring_that_overwrites_the_wrong_key_is_reported(monkeypatch):
    made = caches.Ring.__init__

    def shifted(self, stream):
        made(self, stream)
        self.place = (self.place + 1) % WINDOW

    monkeypatch.setattr(caches.Ring, "__init__", shifted)
    assert _check("swa", "bf16").wrong is not None


def test_a_ring_one_too_long_is_reported(monkeypatch):
    class Long(caches.Growing):
        def step(self, attention, new):
            k, v = self.write(new)
            wide = Attention(attention.backend, Cell("swa", "sdpa", attention.cell.shape, WINDOW + 1, None))
            return wide.attend({**new, "k": k, "v": v})

    monkeypatch.setattr(caches, "Ring", Long)
    assert _check("swa", "bf16").wrong is not None


def test_a_summary_that_is_not_made_is_reported(monkeypatch):
    """Blocks of 4 tokens with w = 40: the token after 299 completes one."""
    made = caches.Summaries.__init__

    def lazy(self, stream):
        made(self, stream)
        assert self.completes
        self.completes = False

    monkeypatch.setattr(caches.Summaries, "__init__", lazy)
    assert _check("nsa", "bf16", 299).wrong is not None


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_layers_are_checked_around_the_attention(monkeypatch, dtype):
    output = layers.output

    def forgets_heads(weights, out):
        return output(weights, out if out.dtype == torch.float64 else out.flip(1))

    monkeypatch.setattr(layers, "output", forgets_heads)
    assert "out is off by" in (_check("dense", dtype, level="layer").wrong or "")


def test_the_best_keys_are_those_of_the_plan():
    delta = torch.randint(0, 5, (2, 3, 60)).float()
    assert torch.equal(best(delta, 7), make_plan(delta, 7).evict_BGT == 60)


def test_probes_keep_the_order_and_the_ties_of_delta():
    shape = Shape("decode", "kernel", 80, 1, 2, 1, 16, "fp32", 0, "cpu")
    attention = Attention(registry.get("dma/live-keys"), Cell("dma", "live-keys", shape, 8, "iid"))
    inputs = Inputs(shape)
    delta = inputs.delta("iid", 8)
    delta[..., 10] = delta[..., 20]
    drawn, on_top = (Probe(attention, inputs, number).delta for number in (0, 1))
    assert torch.equal(drawn[..., :, None] < drawn[..., None, :], delta[..., :, None] < delta[..., None, :])
    assert drawn.max() < 1e-4 and on_top.argmax() == 80


def test_only_live_keys_decode_dma_with_a_cache():
    shape = Shape("decode", "kernel", 80, 1, 2, 1, 16, "fp32", 0, "cpu")
    attention = Attention(registry.get("dma/reference"), Cell("dma", "reference", shape, 8, "iid"))
    with pytest.raises(Unsupported, match="dma/live-keys does"):
        _ = Decoding(attention, Inputs(shape)).cache
