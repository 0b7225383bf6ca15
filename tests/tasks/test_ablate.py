"""Ablations as a task: what a cell is made of, what its rows say, and weights under another attention."""

import pytest
import torch

from dmabench.tasks import language_presets, mqar_presets
from dmabench.tasks.ablate import TASK
from dmabench.tasks.ablate_presets import MISSING
from dmabench.tasks.ablation_subjects import inner
from dmabench.tasks.ablation_variants import OWN, TESTED, VARIANTS, under_attention
from dmabench.tasks.mask_statistics import QUANTILES, TIMES
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config
from dmabench.tasks.task import Tools
from dmabench.trials.cells import blocks_of, make_trials
from dmabench.workload.axis_values import values_of

ALL = (OWN, *TESTED)
TINY = {"language": {"tokens": 1024.0, "seqlen": 32, "heldout_tokens": 500, "step_tokens": 128, "vocab": 300}}
TINY["language"] |= {"size": "tiny", "data": "synthetic", "window": 16}
TINY["mqar"] = {"pairs": 4, "seqlen": 16, "vocab": 64, "d_model": 16, "steps": 4, "test_examples": 8, "window": 4}
TINY["mqar"] |= {"step_tokens": 128}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def cell(on, variant, **changes):
    settings = dict.fromkeys((axis.name for axis in TASK.axes), None)
    settings |= TINY[on] | {"on": on, "variant": variant, "tested": ALL, "lr": 1e-2, "seed": 0}
    return TASK.complete({**settings, **changes})


def run(tmp_path, settings):
    assert TASK.refusal(settings) is None and TASK.cost(settings).tokens > 0
    if TASK.prepare:
        TASK.prepare(settings, lambda sentence: None)
    return TASK.run(settings, Tools("cpu", tmp_path))


@pytest.mark.parametrize("on", ["language", "mqar"])
def test_dma_is_tested_with_every_other_attention_and_its_masks_are_told(tmp_path, on):
    settings = cell(on, "v-learned")
    rows = run(tmp_path, settings)
    assert [row["tested"] for row in rows] == ["own", "mha", "swa", "no-mask", "no-bias"]
    assert {row["attention"] for row in rows} == {"dma"}
    own, dense, _, unmasked, _ = rows
    assert own["loss_change"] == 0 and unmasked["density"] == dense["density"] == 1 > own["density"]
    assert all(row["loss_change"] == pytest.approx(row["test_loss"] - own["test_loss"]) for row in rows)
    assert len({row["test_loss"] for row in rows}) > 1 and len({row["validation_loss"] for row in rows}) == 1
    T = settings["seqlen"]
    assert own["mask_tokens"] == [times * T for _ in range(2) for times in TIMES for _ in range(2)]
    assert 0 < own["overlap"] <= 1 and 0 < own["overlap_untrained"] <= 1 and 0 < own["overlap_chance"] < 1
    assert all(len(own[f"mask_{name}"]) == len(own["mask_tokens"]) for name in ("age", "overlap", "threshold"))
    assert all(values == sorted(values) and len(values) == len(QUANTILES) for values in own["mask_quantiles"])
    curve = own.get("curve_loss", [])
    assert len(curve) == len(own.get("curve_tokens", [])) and all("curve_loss" not in row for row in rows[1:])
    assert curve[-1:] == ([pytest.approx(own["validation_loss"], rel=1e-5)] if on == "language" else [])
    assert own["age"] >= 0 and all("age" not in row for row in rows[1:])


def test_constant_importance_trains_like_the_sliding_window(tmp_path):
    (constant, *_), (window, *_) = (
        run(tmp_path / name, cell("language", name, tested=(OWN,))) for name in ("constant", "swa")
    )
    assert constant["test_loss"] == pytest.approx(window["test_loss"], abs=1e-4)
    assert constant["parameters"] == window["parameters"] and constant["overlap"] == 1
    assert "overlap" not in window


def test_mha_is_under_attention_windows_that_it_never_saw(tmp_path):
    rows = run(tmp_path, cell("mqar", "mha", tested=("swa", "dma")))
    assert [row["tested"] for row in rows] == ["own", "swa", "dma"]
    assert rows[0]["density"] == 1 > rows[1]["density"] == rows[2]["density"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_model(name):
    attention, fields = VARIANTS[name]
    trained = inner(cell("language", name))
    assert trained["attention"] == attention and trained["window"] == 16
    assert all(trained[field] == value for field, value in fields.items())


@torch.no_grad()
def test_weights_under_another_attention_are_the_same_weights():
    torch.manual_seed(0)
    model = DmabenchForCausalLM(model_config("tiny", "dma", window=8, vocab_size=64, dma_importance="k")).eval()
    ids = torch.randint(0, 64, (2, 24))
    before = model(input_ids=ids).logits
    assert under_attention(model, OWN) is model and under_attention(model, "dma") is None
    open_ = under_attention(model, "no-mask")
    assert (open_.config.dma_importance, open_.config.dma_mask, model.config.dma_mask) == ("k", False, True)
    torch.testing.assert_close(open_(input_ids=ids[:, :8]).logits, before[:, :8])  # the window holds so many
    dense = under_attention(model, "mha")
    assert dense.config.attention == "mha" and torch.equal(dense.lm_head.weight, model.lm_head.weight)
    again = under_attention(dense, "dma")
    assert again.config.attention == "dma" and again.config.dma_importance == "k"
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_cell_has_no_settings_of_the_other_subject():
    text, recall = (cell(on, "mha", **TINY["language"], **{"pairs": 4, "steps": 4}) for on in ("language", "mqar"))
    assert text["pairs"] is None and recall["tokens"] is None and recall["pairs"] == 4
    assert TASK.refusal(cell("mqar", "mha", seqlen=8)) and not TASK.refusal(recall)


@pytest.mark.parametrize(("preset", "device"), [(None, "cpu"), (None, "cuda"), ("quick", "cpu"), ("h100", "cuda")])
@pytest.mark.parametrize("on", ["language", "mqar"])
def test_every_preset_can_be_turned_to_either_subject(preset, device, on):
    trials = make_trials(TASK, blocks_of(TASK, preset, {"on": on, "data": "synthetic"}, device))
    assert not any(trial.refusal for trial in trials)
    assert {trial.settings["on"] for trial in trials} == {on}
    assert all(trial.settings["window"] < trial.settings["seqlen"] for trial in trials)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("presets", [language_presets, mqar_presets])
def test_what_is_filled_in_is_what_the_tasks_themselves_do(presets, small):
    defaults, on = presets.CPU if small else presets.CUDA, "mqar" if presets is mqar_presets else "language"
    axes = {axis.name: axis for axis in TASK.axes}
    for name, value in MISSING[on][0 if small else 1].items():
        if name in defaults:
            assert values_of(axes[name], defaults[name]) == [value]
