"""Replayed steps: what is captured when, and that a training with them is the training without.

There is no graph on a CPU: a stand-in records the function and calls it at each replay, as a graph would run its
kernels. What it cannot show, that the kernels themselves can be captured, is for test_gpu_train.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dmabench.tasks.replay as replaying
import dmabench.tasks.train as training
from dmabench.tasks.batches import Part
from dmabench.tasks.replay import CALLS_FIRST, Replay
from dmabench.tasks.scoring import Score
from dmabench.tasks.task import Tools
from dmabench.tasks.task_model import build_model
from dmabench.tasks.train import Recipe, Trained, train

CPU = torch.device("cpu")


class CallAgain:
    """A graph that does at each replay what was recorded, and leaves the result in the same place."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self.call, self.result = call, torch.full((), torch.nan)

    def replay(self) -> None:
        self.result.copy_(self.call())


def record(call: Callable[[], Tensor]) -> tuple[CallAgain, Tensor]:
    graph = CallAgain(call)
    return graph, graph.result


def part(length: int, labels: int, value: int = 1) -> Part:
    ids = torch.full((2, length), value)
    return Part(ids, torch.arange(labels), torch.full((labels,), value))


class Counted:
    """A step that adds up what it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def step(self, parts: Any, labels: Tensor) -> Tensor:
        self.calls += 1
        return self.loss(parts, labels)

    def loss(self, parts: Any, labels: Tensor) -> Tensor:
        return sum((one.input_ids.sum() + one.targets.sum() for one in parts), torch.zeros(())) / labels


def test_the_third_step_of_a_shape_is_captured_and_every_later_one_replayed() -> None:
    counted = Counted()
    replay = Replay(counted.step, counted.loss, CPU, record)
    for number in range(1, 7):
        loss = replay([part(4, 2, number)], 2)
        assert loss.item() == (8 * number + 2 * number) / 2
        assert replay.replayed == max(0, number - CALLS_FIRST)
    assert replay([part(6, 2)], 7).item() == pytest.approx(14 / 7)  # another shape is called first
    assert replay.replayed == 4
    assert replay([part(4, 2, 3)], 5).item() == 6  # and the one before is still held; another count of labels, too
    assert replay.replayed == 5


def test_losses_of_earlier_replays_stay_what_they_were() -> None:
    counted = Counted()
    replay = Replay(counted.step, counted.loss, CPU, record)
    losses = [replay([part(4, 2, number)], 1) for number in range(1, 6)]
    assert [loss.item() for loss in losses] == [10, 20, 30, 40, 50]


def test_so_many_shapes_are_kept_and_no_more() -> None:
    counted = Counted()
    replay = Replay(counted.step, counted.loss, CPU, record, most=1)
    for _ in range(4):
        replay([part(4, 2)], 2)
        replay([part(6, 2)], 2)
    assert replay.replayed == 2


def test_what_cannot_be_captured_is_called_and_told() -> None:
    counted = Counted()

    def refuse(call: Callable[[], Tensor]) -> tuple[CallAgain, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    replay = Replay(counted.step, counted.loss, CPU, refuse)
    for number in range(1, 6):
        assert replay([part(4, 2, number)], 1).item() == 10 * number
    assert (counted.calls, replay.replayed) == (5, 0)
    assert replay.failed == "RuntimeError: operation not permitted when stream is capturing"


def test_a_graph_that_computes_something_else_is_an_error() -> None:
    counted = Counted()
    replay = Replay(counted.step, counted.loss, CPU, lambda call: record(lambda: call() * 1.5))
    replay([part(4, 2)], 2), replay([part(4, 2)], 2)
    with pytest.raises(RuntimeError, match=r"has the loss 7\.5, not 5\.0"):
        replay([part(4, 2)], 2)


class Changing:
    """Two lengths one after the other, and a number of labels that changes from step to step."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        length = 8 if step < 8 else 12
        ids = torch.randint(32, (size, length), generator=generator)
        labels = torch.where(torch.rand(size, length, generator=generator) < 0.9, (7 * ids + 3) % 32, -100)
        return ids, labels


def run(folder: Path, replay: bool, signals: list[signal.Signals], accumulate: int = 1) -> Trained:
    def validate(model: Any) -> Score:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return Score(0, 1, 0, 1, -1.0)

    model = build_model({"attention": "mha", "d_model": 16, "heads": 2, "seed": 1}, 32, 16)
    recipe = Recipe(24, 6, 1e-2, validate_every=6, accumulate=accumulate)
    return train(model, Changing(), recipe, Tools("cpu", folder), validate, replay)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "REPLAYING", ("cpu",))
    monkeypatch.setattr(replaying, "_TorchCapture", lambda: record)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_replayed_training_is_the_same_training(tmp_path: Path, accumulate: int) -> None:
    called = run(tmp_path / "called", False, [], accumulate)
    replayed = run(tmp_path / "replayed", True, [], accumulate)
    assert replayed.replayed > 10 and replayed.not_replayed is None and called.replayed == 0
    assert replayed.facts()["steps_replayed"] == replayed.replayed
    assert replayed.curve == pytest.approx(called.curve, rel=1e-5)  # labels are padded, so sums are rounded otherwise
    assert replayed.curve[-1] < replayed.curve[0] - 1
    assert replayed.tokens == called.tokens


@pytest.mark.usefixtures("graphs")
def test_replayed_training_resumes_to_the_bit(tmp_path: Path) -> None:
    through = run(tmp_path / "through", True, [])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", True, [signal.SIGINT])
    again = run(tmp_path / "again", True, [])
    assert again.curve == through.curve and 0 < again.replayed < through.replayed
    for one, two in zip(through.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)
