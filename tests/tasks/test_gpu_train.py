"""Training on a GPU: bf16 with batches from pinned memory learns, and a resumed training gives the same bits."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dmabench.tasks.inference import inference_time
from dmabench.tasks.scoring import Score
from dmabench.tasks.task import Tools
from dmabench.tasks.task_model import build_model
from dmabench.tasks.train import Recipe, Trained, train

pytestmark = pytest.mark.gpu

SETTINGS = {"d_model": 64, "layers": 2, "heads": 1, "window": 64, "seed": 1}


class Successor:
    """Each token is to be answered by the one after it in a fixed order."""

    def batch(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(64, (size, 128), generator=torch.Generator().manual_seed(step))
        return ids, (7 * ids + 3) % 64


def run(attention: str, folder: Path, signals: list[signal.Signals], replay: bool = False, **more: Any) -> Trained:
    def validate(model: Any) -> Score:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return Score(0, 1, 0, 1, -1.0)

    model = build_model({**SETTINGS, "attention": attention}, 64, 128)
    return train(
        model, Successor(), Recipe(60, 8, 1e-2, validate_every=20), Tools("cuda", folder, **more), validate, replay
    )


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "dma"])
def test_deterministic_training_resumes_to_the_bit(attention: str, tmp_path: Path) -> None:
    through = run(attention, tmp_path / "through", [], deterministic=True)
    with pytest.raises(KeyboardInterrupt):
        run(attention, tmp_path / "again", [signal.SIGTERM], deterministic=True)
    again = run(attention, tmp_path / "again", [], deterministic=True)
    assert again.curve == through.curve and through.curve[-1] < through.curve[0] / 2
    for one, two in zip(through.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("attention", ["mha", "dma"])
def test_compiled_training_learns_as_eager_training_does(attention: str, tmp_path: Path) -> None:
    eager = run(attention, tmp_path / "eager", [])
    compiled = run(attention, tmp_path / "compiled", [], compile=True)
    assert compiled.curve[:5] == pytest.approx(eager.curve[:5], rel=0.02)
    assert compiled.curve[-1] < compiled.curve[0] / 2


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "nsa", "dma"])
def test_steps_are_replayed_and_change_nothing(attention: str, tmp_path: Path) -> None:
    called = run(attention, tmp_path / "called", [])
    replayed = run(attention, tmp_path / "replayed", [], replay=True)
    assert (replayed.not_replayed, replayed.replayed) == (None, 58)
    assert replayed.curve[:20] == pytest.approx(called.curve[:20], rel=0.02)
    assert replayed.curve[-1] < replayed.curve[0] / 2


@pytest.mark.parametrize("attention", ["mha", "dma"])
def test_replayed_deterministic_training_resumes_to_the_bit(attention: str, tmp_path: Path) -> None:
    through = run(attention, tmp_path / "through", [], replay=True, deterministic=True)
    with pytest.raises(KeyboardInterrupt):
        run(attention, tmp_path / "again", [signal.SIGTERM], replay=True, deterministic=True)
    again = run(attention, tmp_path / "again", [], replay=True, deterministic=True)
    assert again.curve == through.curve and again.replayed > 0
    for one, two in zip(through.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_compiled_layers_are_replayed_too(tmp_path: Path) -> None:
    compiled = run("mha", tmp_path, [], replay=True, compile=True)
    assert compiled.not_replayed is None and compiled.replayed == 58
    assert compiled.curve[-1] < compiled.curve[0] / 2


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "nsa", "dma"])
def test_inference_is_timed_as_a_replay(attention: str, tmp_path: Path) -> None:
    model = build_model({**SETTINGS, "attention": attention}, 64, 128).cuda()
    called = []
    tools = Tools("cuda", tmp_path, time_ms=lambda call: (called.append(call()), 1.0)[1])
    row = inference_time(model, *Successor().batch(0, 4), tools)
    assert row == {"infer_ms": 1.0, "infer_batch": 4, "infer_replayed": True} and len(called) == 1
