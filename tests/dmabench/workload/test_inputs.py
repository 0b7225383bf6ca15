"""Inputs: named distributions, seeds, files."""

import numpy as np
import pytest
import torch

from dmabench.errors import Refusal
from dmabench.workload.cells import DELTAS, Shape
from dmabench.workload.inputs import Inputs, delta_from_file, named_delta, padded_keys


def _delta(name: str, T: int = 4096, window: int = 256) -> torch.Tensor:
    return named_delta(name, 2, 3, T, window, seed=0)


@pytest.mark.parametrize("name", DELTAS)
def test_every_distribution_is_finite_positive_float32_and_seeded(name):
    delta = _delta(name)
    assert delta.shape == (2, 3, 4096) and delta.dtype == torch.float32
    assert bool(delta.isfinite().all()) and bool((delta >= 1).all())
    assert torch.equal(delta, _delta(name))
    if name != "constant":
        assert not torch.equal(delta, named_delta(name, 2, 3, 4096, 256, seed=1))


def test_distributions_have_the_shape_they_are_named_for():
    x = {name: 2 * _delta(name).double().log() for name in DELTAS}  # softplus of x

    def halves(name):
        return float(x[name][..., :2048].mean()), float(x[name][..., 2048:].mean())

    assert halves("rising")[0] < halves("rising")[1]
    assert halves("falling")[0] > halves("falling")[1]
    assert float(x["constant"].std()) < 1e-6
    iid = x["iid"] - x["iid"].mean()
    assert abs(float((iid[..., 1:] * iid[..., :-1]).mean())) < 0.05
    ar1 = x["ar1"] - x["ar1"].mean()
    assert float((ar1[..., 1:] * ar1[..., :-1]).mean() / ar1.square().mean()) > 0.9
    steps = x["clustered"].diff(dim=-1).abs()
    inside = steps[..., :63].mean()
    assert float(inside) < float(steps[..., 63::64].mean())
    saw = x["sawtooth"].mean((0, 1))
    assert float(saw[1:1000].diff().mean()) < 0 and float(saw[1024]) > float(saw[1000])


def test_inputs_are_fresh_for_a_seed_and_never_zero():
    shape = Shape("bwd", "kernel", 64, 1, 4, 2, 16, "bf16", 0, "cpu")
    first, same = Inputs(shape), Inputs(shape)
    assert torch.equal(first.q, same.q) and first.q.dtype == torch.bfloat16
    other = Inputs(Shape("bwd", "kernel", 64, 1, 4, 2, 16, "bf16", 1, "cpu"))
    for name in ("q", "k", "v", "dout"):
        assert not torch.equal(getattr(first, name), getattr(other, name))
        assert bool((getattr(first, name) != 0).float().mean() > 0.9)
    assert not torch.equal(first.k, first.v)


def test_only_the_sawtooth_depends_on_the_window():
    inputs = Inputs(Shape("fwd", "kernel", 256, 1, 2, 1, 16, "fp32", 0, "cpu"))
    assert inputs.delta("iid", 8) is inputs.delta("iid", 16)
    assert not torch.equal(inputs.delta("sawtooth", 8), inputs.delta("sawtooth", 16))


def test_a_file_is_read_cut_and_broadcast(tmp_path):
    array = np.random.default_rng(0).random((3, 50), dtype=np.float32)
    np.save(tmp_path / "delta.npy", array)
    delta = delta_from_file(str(tmp_path / "delta.npy"), 2, 3, 40)
    assert torch.equal(delta, torch.from_numpy(array[None, :, :40]).expand(2, 3, 40))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 50)), "has shape"),
        (np.ones((3, 30)), "has shape"),
        (np.ones(50), "has shape"),
        (np.full((3, 50), np.nan), "NaN or infinite"),
        (np.full((3, 50), np.inf), "NaN or infinite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, array, words):
    np.save(tmp_path / "delta.npy", array)
    with pytest.raises(Refusal, match=words):
        delta_from_file(str(tmp_path / "delta.npy"), 1, 3, 40)


def test_what_is_no_array_is_refused(tmp_path):
    (tmp_path / "delta.npy").write_text("not an array")
    with pytest.raises(Refusal, match=r"numpy\.save"):
        delta_from_file(str(tmp_path / "delta.npy"), 1, 3, 40)


def test_padded_keys_are_at_one_end_and_fill_the_last_row():
    left = padded_keys("left", 3, 10)
    assert left.dtype == torch.bool and (~left).sum(-1).tolist() == [3, 2, 10]
    assert left[0].tolist() == [False] * 3 + [True] * 7
    assert torch.equal(padded_keys("right", 3, 10), left.flip(-1))
    assert (~padded_keys("left", 1, 10)).sum() == 3 and not padded_keys("right", 1, 1).any()
    with pytest.raises(ValueError, match="padding 'middle' is not one of left, right"):
        padded_keys("middle", 1, 10)


def test_padding_reaches_the_plan():
    shape = Shape("fwd", "kernel", 20, 2, 2, 1, 16, "fp32", 0, "cpu")
    inputs = Inputs(shape, padding="right")
    assert torch.equal(inputs.key_mask, padded_keys("right", 2, 20))
    assert torch.equal(inputs.plan("constant", 20).live_BGT[:, 0], inputs.key_mask)
    assert Inputs(shape).key_mask is None
