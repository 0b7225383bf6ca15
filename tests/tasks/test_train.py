"""The loop: it learns, stops, resumes to the bit, and says what went wrong."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmabench.tasks.train as training
from dmabench.tasks import checkpoint
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.scoring import Score, predict
from dmabench.tasks.task import Progress, Tools
from dmabench.tasks.task_model import build_model
from dmabench.tasks.train import Recipe, train
from dmabench.tasks.trained import Validation

VOCABULARY, PAIRS = 32, 4
SMALL = {"attention": "mha", "window": 4, "d_model": 16, "layers": 2, "heads": 2, "kv_heads": 1, "seed": 3}
HALF, FULL = Score(1, 2, 0, 1, -1.0), Score(2, 2, 1, 1, -0.5)


@dataclass(frozen=True)
class Recall:
    """k1 v1 ... k4 v4, then the four keys in another order, each labelled with its value."""

    seed: int = 0

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        half = VOCABULARY // 2
        keys = torch.rand(size, half, generator=generator).argsort(1)[:, :PAIRS]
        values = half + torch.randint(half, (size, PAIRS), generator=generator)
        order = torch.rand(size, PAIRS, generator=generator).argsort(1)
        context = torch.stack([keys, values], -1).flatten(1)
        labels = torch.cat([torch.full_like(context, -100), values.gather(1, order)], 1)
        return torch.cat([context, keys.gather(1, order)], 1), labels


def tools(folder: Path, **more: Any) -> Tools:
    return Tools("cpu", folder, **more)


def small(**changes: Any) -> DmabenchForCausalLM:
    return build_model({**SMALL, **changes}, VOCABULARY, 3 * PAIRS)


def weights(model: DmabenchForCausalLM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same(model: DmabenchForCausalLM, expected: dict[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_two_dense_layers_with_a_short_convolution_learn_recall(tmp_path: Path) -> None:
    settings = {"attention": "mha", "d_model": 64, "layers": 2, "heads": 1, "short_conv": 4, "seed": 0}
    model = build_model(settings, VOCABULARY, 3 * PAIRS)
    held_out = Recall(seed=1).batch(0, 64)
    recipe = Recipe(400, 32, 3e-3, validate_every=25, stop_at=0.95)
    done = train(model, Recall(), recipe, tools(tmp_path), lambda model: predict(model, *held_out).score())
    assert done.stopped == "early" and done.steps < 400
    assert done.validation is not None and done.validation.accuracy >= 0.95
    assert done.validations[0].step == 25 and done.validations[0].accuracy < 0.5
    assert predict(model, *Recall(seed=2).batch(0, 64)).score().accuracy > 0.9


def test_the_loss_is_the_mean_over_labels(tmp_path: Path) -> None:
    model = small()
    ids, labels = Recall().batch(0, 6)
    logits = model(input_ids=ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).item()
    done = train(model, Recall(), Recipe(3, 6, 1e-3), tools(tmp_path))
    assert done.curve[0] == pytest.approx(expected, rel=1e-6)
    assert (done.steps, done.tokens, len(done.curve)) == (3, 3 * ids.numel(), 3)
    assert done.loss == pytest.approx(sum(done.curve) / 3)
    assert done.seconds > 0 and done.tokens_per_s > 0 and done.validation is None


def test_accumulated_parts_change_rounding_alone(tmp_path: Path) -> None:
    whole, parts = (
        train(small(), Recall(), Recipe(8, 7, 1e-2, accumulate=parts), tools(tmp_path / str(parts))) for parts in (1, 3)
    )
    assert parts.curve == pytest.approx(whole.curve, rel=1e-5)


@pytest.mark.parametrize(("attention", "number"), [("mha", signal.SIGINT), ("dma", signal.SIGTERM)])
def test_resumed_training_gives_the_same_bits(tmp_path: Path, attention: str, number: signal.Signals) -> None:
    recipe = Recipe(20, 4, 1e-2, validate_every=6, stop_at=0.9)

    def untouched(model: Any) -> Score:
        return HALF

    through = train(small(attention=attention), Recall(), recipe, tools(tmp_path / "through"), untouched)
    signals = [number]

    def interrupted(model: Any) -> Score:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return HALF

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(small(attention=attention), Recall(), recipe, tools(tmp_path / "again"), interrupted)
    assert signal.getsignal(number) is before
    held = checkpoint.read(tmp_path / "again")
    assert held is not None and 6 <= held["rest"]["past"]["step"] < 20
    steps: list[int] = []
    again = train(
        small(attention=attention, seed=99),  # other weights than those that the first run began with
        Recall(),
        recipe,
        tools(tmp_path / "again", progress=lambda progress: steps.append(progress.step)),
        untouched,
    )
    assert steps[0] > 6
    assert_same(again.model, weights(through.model))
    assert again.curve == through.curve
    looks = [Validation(step, 0.5, step * 4 * 3 * PAIRS, HALF.loss) for step in (6, 12, 18, 20)]
    assert again.validations == through.validations == looks
    assert again.tokens == through.tokens


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    recipe = Recipe(12, 4, 1e-2, validate_every=3, stop_at=1.0)
    scores = iter([HALF, FULL])
    first = train(small(), Recall(), recipe, tools(tmp_path), lambda model: next(scores))
    assert (first.steps, first.stopped) == (6, "early")
    second = train(small(seed=5), Recall(), recipe, tools(tmp_path), lambda model: pytest.fail("validated again"))
    assert_same(second.model, weights(first.model))
    assert replace(second, model=None) == replace(first, model=None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": {"lr": 3e-3}}, "lr 0.01, not 0.003"),
        ({"recipe": {"batch": 5, "clip": 0.5}}, "batch 4, not 5; clip 1.0, not 0.5"),
        ({"model": {"attention": "swa"}}, "attention 'mha', not 'swa'"),
        ({"examples": {"seed": 8}}, "other training examples"),
    ],
)
def test_another_training_s_checkpoint_is_refused_by_name(
    tmp_path: Path, change: dict[str, dict[str, Any]], named: str
) -> None:
    base = {"steps": 2, "batch": 4, "lr": 1e-2}
    train(small(), Recall(), Recipe(**base), tools(tmp_path))
    with pytest.raises(ValueError, match=named):
        train(
            small(**change.get("model", {})),
            Recall(**change.get("examples", {})),
            Recipe(**{**base, **change.get("recipe", {})}),
            tools(tmp_path),
        )


def test_a_loss_that_is_not_finite_ends_training_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"loss of step 1 of 9 is nan.*lr \(now 0.01\)"):
        train(model, Recall(), Recipe(9, 4, 1e-2), tools(tmp_path))
    assert checkpoint.read(tmp_path) is None


def test_mistakes_of_the_examples_reach_the_caller(tmp_path: Path) -> None:
    class Broken(Recall):
        def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
            if step == 2:
                raise OverflowError("no third batch")
            return super().batch(step, size)

    with pytest.raises(OverflowError, match="no third batch"):
        train(small(), Broken(), Recipe(9, 4, 1e-2), tools(tmp_path))


def test_progress_tells_stage_step_loss_and_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOOK_S", 0.0)
    seen: list[Progress] = []
    done = train(
        small(), Recall(), Recipe(4, 4, 1e-2, validate_every=2), tools(tmp_path, progress=seen.append), lambda _: HALF
    )
    told = [(progress.stage, progress.step, progress.accuracy) for progress in seen]
    assert told == [
        ("train", 1, None),
        ("validate", 2, None),
        ("train", 2, 0.5),
        ("train", 3, 0.5),
        ("validate", 4, 0.5),
        ("train", 4, 0.5),
    ]
    assert seen[-1].loss == done.curve[-1] and seen[-1].steps == 4
    assert seen[-1].tokens_per_s == done.tokens_per_s


def test_long_trainings_are_saved_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOOK_S", 0.0)
    monkeypatch.setattr(training, "SAVE_S", 0.0)

    class Killed(BaseException):
        """As sudden as a power cut."""

    def progress(progress: Progress) -> None:
        if progress.step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(small(), Recall(), Recipe(6, 4, 1e-2), tools(tmp_path, progress=progress))
    held = checkpoint.read(tmp_path)
    assert held is not None and held["rest"]["past"]["step"] == 3


def test_the_model_stays_in_the_mode_that_each_stage_needs(tmp_path: Path) -> None:
    modes: list[bool] = []

    def validate(model: DmabenchForCausalLM) -> Score:
        modes.append(model.training)
        return HALF

    model = small()
    train(model, Recall(), Recipe(2, 4, 1e-2), tools(tmp_path), validate)
    assert modes == [False] and model.training


def test_compiled_layers_train_as_eager_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[SimpleNamespace] = []
    real = torch.nn.Module.compile

    def compile_for_tests(module: torch.nn.Module) -> None:  # tracing is ours to test, the compiler is not
        compiled.append(SimpleNamespace(kind=type(module).__name__))
        real(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_for_tests)
    eager = train(small(), Recall(), Recipe(3, 4, 1e-2), tools(tmp_path / "eager"))
    traced = train(small(), Recall(), Recipe(3, 4, 1e-2), tools(tmp_path / "traced", compile=True))
    assert [one.kind for one in compiled] == ["DecoderLayer", "DecoderLayer"]
    assert traced.curve == pytest.approx(eager.curve, rel=1e-5)
