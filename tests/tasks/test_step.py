"""Steps are timed as training takes them, and memory that ends makes them smaller."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dmabench.tasks import step
from dmabench.tasks.recipe import Recipe
from dmabench.tasks.registry import get
from dmabench.tasks.task import Tools
from dmabench.tasks.train import train
from dmabench.trials.cells import blocks_of, make_trials

GIVEN = {"size": "tiny", "attention": "dma", "seqlen": 32, "window": 8, "batch": 4, "steps": 2}
EMPTY = {axis.name: None for axis in step.AXES} | {"recompute": "auto", "nsa": None, "seed": 0}


def settings(**changes: Any) -> dict[str, Any]:
    return step.complete(EMPTY | GIVEN | changes)


def test_a_row_says_what_a_step_takes(tmp_path: Path) -> None:
    told: list[int] = []
    (row,) = step.run(settings(), Tools("cpu", tmp_path, progress=lambda progress: told.append(progress.step)))
    assert row["tokens_per_s"] == pytest.approx(1e3 * 4 * 32 / row["step_ms"])
    assert row["step_ms_low"] <= row["step_ms"] <= row["step_ms_high"]
    assert 0 < row["attention_share"] < 1
    assert row["tflops"] > 0 and row["sparsity_active"] and row["density"] < 1
    assert (row["rows_at_once"], row["recomputed"], row["peak_mib"]) == (4, False, None)
    assert told[-1] == step.WARM + 2 + step.MARKED


def test_a_step_is_that_of_training(tmp_path: Path) -> None:
    """The same weights and tokens have the same loss, in parts too."""
    steps = step._prepare(settings(), 3, False, Tools("cpu", tmp_path))
    again = step._prepare(settings(), 4, False, Tools("cpu", tmp_path))
    assert [len(part.input_ids) for part in steps.batch.parts] == [2, 2]

    class Same:
        def batch(self, number: int, size: int) -> Any:
            ids = again.batch.parts[0].input_ids
            return ids, again.batch.parts[0].targets.view_as(ids)

    recipe = Recipe(steps=3, batch=4, lr=step.RECIPE.lr, warmup=0)
    done = train(again.model, Same(), recipe, Tools("cpu", tmp_path / "train"))
    assert steps.once().item() == pytest.approx(done.curve[0], rel=1e-6)
    assert steps.once().item() == pytest.approx(done.curve[1], rel=1e-3)


@pytest.mark.parametrize(
    ("given", "fits", "found"),
    [
        ({}, lambda at_once, recompute: at_once <= 2, (2, False)),
        ({}, lambda at_once, recompute: recompute and at_once <= 2, (2, True)),
        ({"recompute": "yes"}, lambda at_once, recompute: True, (4, True)),
        ({"at_once": 3}, lambda at_once, recompute: recompute, (3, True)),
        ({"recompute": "no"}, lambda at_once, recompute: recompute, None),
        ({"at_once": 2, "recompute": "no"}, lambda at_once, recompute: at_once < 2, None),
    ],
)
def test_memory_that_ends_makes_steps_smaller(
    given: dict[str, Any], fits: Any, found: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    def measure(_: Any, at_once: int, recompute: bool, tools: Any) -> Any:
        if not fits(at_once, recompute):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return at_once, recompute

    monkeypatch.setattr(step, "_measure", measure)
    if found:
        assert step.run(settings(**given), Tools("cpu", tmp_path)) == [found]
    else:
        with pytest.raises(torch.OutOfMemoryError):
            step.run(settings(**given), Tools("cpu", tmp_path))


def test_recomputed_activations_change_nothing(tmp_path: Path) -> None:
    kept, again = (step._prepare(settings(), 4, recompute, Tools("cpu", tmp_path)) for recompute in (False, True))
    assert again.model.model.gradient_checkpointing
    assert torch.equal(kept.once(), again.once())
    assert torch.equal(kept.once(), again.once())


def test_what_follows_and_what_is_refused() -> None:
    whole = step.complete(EMPTY | {"size": "1.7B", "attention": "dma", "seqlen": 2048, "step_tokens": 32768})
    assert (whole["window"], whole["batch"], whole["step_tokens"]) == (512, 16, None)
    assert step.complete(EMPTY | GIVEN | {"attention": "mha", "window": None})["window"] is None
    assert step.refusal(settings()) is None
    assert "--at-once 5 is more than the 4 sequences" in str(step.refusal(settings(at_once=5)))
    assert step.config_of(whole | {"seqlen": 65536}).position_limit == 65536


def test_the_presets_are_what_was_promised() -> None:
    task = get("step")
    trials = make_trials(task, blocks_of(task, "h100", {}, "cuda"))
    assert all(trial.refusal is None for trial in trials)
    large = {(t.settings["attention"], t.settings["seqlen"]) for t in trials if t.settings["size"] == "1.7B"}
    assert large == {(kind, length) for kind in ("mha", "dma") for length in (2048, 8192, 32768)}
    small = [t.settings for t in trials if t.settings["size"] == "30M" and t.settings["seqlen"] == 8192]
    assert {one["attention"]: one["window"] for one in small} == {
        "mha": None,
        "swa": 512,
        "mla": None,
        "nsa": 512,
        "dma": 512,
    }
