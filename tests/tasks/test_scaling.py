"""Scaling as a task: the row of a training with both measures of size, and the paper's grid."""

import math

import pytest

from dmabench.tasks.document_losses import unpack
from dmabench.tasks.parameters import parameters
from dmabench.tasks.presets import model_config
from dmabench.tasks.scaling import TASK, size_of
from dmabench.tasks.scaling_presets import GRID
from dmabench.tasks.task import Tools
from dmabench.trials.cells import blocks_of, make_trials


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def cells(preset=None, device="cpu", **given):
    return make_trials(TASK, blocks_of(TASK, preset, given, device))


def test_a_cell_is_a_training_with_its_size_and_the_loss_of_every_document(tmp_path):
    (trial,) = cells(size="tiny", attention="dma", tokens="2048", lr="1e-2", heldout_tokens="2000")
    (row,) = TASK.run(trial.settings, Tools("cpu", tmp_path))
    assert row["perplexity"] == pytest.approx(math.exp(row["test_loss"]))
    nll, tokens = unpack(row["document_losses"])
    assert len(nll) == row["test_documents"] and tokens.sum() == row["test_tokens"]
    assert nll.sum() / tokens.sum() == pytest.approx(row["test_loss"])
    whole = parameters(model_config("tiny", "dma", vocab_size=512))
    assert row["body_parameters"] == whole["total"] - whole["embedding"] < row["parameters"] == whole["total"]
    # Six operations a parameter and token, and those of attention.
    assert 1 < row["train_flops"] / (6 * row["parameters"] * row["trained_tokens"]) < 2


def test_operations_grow_with_tokens_and_fall_with_the_window():
    def flops(**given):
        (trial,) = cells(size="tiny", lr="1e-2", **given)
        return size_of(trial.settings, 512)["train_flops"]

    once = flops(attention="mha", tokens="65536")
    assert flops(attention="mha", tokens="131072") == pytest.approx(2 * once)
    assert flops(attention="dma", window="16", tokens="65536") < flops(attention="dma", window="64", tokens="65536")


def test_the_paper_s_grid():
    trials = cells("paper", "cuda")
    assert len(trials) == 5 * len(GRID) and not any(trial.refusal for trial in trials)
    for trial in trials:
        steps, step_tokens, lr, window = GRID[trial.settings["size"]]
        assert trial.cost.tokens == pytest.approx(steps * step_tokens, rel=0.01)
        assert trial.settings["lr"] == float(lr) and trial.settings["window"] in (window, None)
    assert 1e20 < max(trial.cost.flops for trial in trials) < 1e21  # 6 x 1.7e9 x 40e9 is 4e20


@pytest.mark.parametrize("preset", [None, "quick", "h100"])
def test_a_preset_has_sizes_enough_for_a_fit(preset):
    trials = cells(preset, "cuda" if preset == "h100" else "cpu", data="synthetic")
    for attention in ("mha", "dma"):
        mine = {trial.settings["size"] for trial in trials if trial.settings["attention"] == attention}
        assert len(mine) == 3
    assert not any(trial.refusal for trial in trials)
