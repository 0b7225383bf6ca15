"""Recall as a task: what is refused and filled in, what a cell costs and reports, and that its control learns."""

from math import isclose

import pytest

from dmabench.tasks.curriculum import stages
from dmabench.tasks.mqar import STOP_AT, TASK, layout_of
from dmabench.tasks.task import Tools
from dmabench.trials.cells import blocks_of, make_trials

ROW = {"accuracy", "correct", "total", "chance", "validation_accuracy", "loss", "tokens", "train_s", "tokens_per_s"}
ROW |= {"stopped", "parameters", "density", "sparsity_active", "infer_ms", "infer_batch", "pairs_kept", "live_in_pairs"}
TINY = {
    "pairs": 4,
    "seqlen": 32,
    "vocab": 64,
    "power": 0.01,
    "fillers": True,
    "examples": 0,
    "test_examples": 16,
    "curriculum": "off",
    "attention": "mha",
    "window": None,
    "d_model": 32,
    "layers": 2,
    "heads": 1,
    "kv_heads": None,
    "positions": "rope",
    "short_conv": 4,
    "mla_latent": None,
    "nsa_topk": None,
    "lr": 1e-2,
    "batch": None,
    "steps": 4,
    "seed": 0,
    "step_tokens": 256,
}


def cell(**changes):
    return TASK.complete({**TINY, **changes})


def test_tiny_names_every_axis():
    assert set(TINY) == {axis.name for axis in TASK.axes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": 512, "seqlen": 1024, "vocab": 8192}, "the shortest sequence that holds them has 2048"),
        ({"pairs": 100}, "the shortest sequence that holds them has 400"),
        ({"seqlen": 33}, "must be even"),
        ({"vocab": 12}, "the smallest that does has 16"),
        ({"attention": "swa", "window": 0}, "window must be an int of at least 1"),
        ({"attention": "nsa", "window": 8}, "the least is 16"),
        ({"curriculum": "8"}, "numbers of pairs below the target"),
        ({"curriculum": "1"}, "a stage of the curriculum cannot be: a vocabulary of 64 is too small for 1 pair"),
        ({"heads": 3}, "choose other --d-model or --heads"),
        ({"lr": 0.0}, "--lr 0 trains nothing"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes, words):
    assert words in TASK.refusal(cell(**changes))


def test_what_follows_is_filled_in():
    found = cell(pairs=128, seqlen=None, attention="dma", step_tokens=2048)
    assert (found["seqlen"], found["window"], found["batch"]) == (512, 128, 4)
    assert TASK.refusal(cell(pairs=21, seqlen=None)) is None
    found = cell(attention="dma", window=5, batch=3)
    assert (found["seqlen"], found["window"], found["batch"]) == (32, 5, 3)
    assert cell(attention="mha")["window"] is None
    assert cell(step_tokens=1)["batch"] == 1
    assert cell(step_tokens=256) == cell(step_tokens=999, batch=8)


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "nsa", "dma"])
def test_a_cell_is_one_row(tmp_path, attention):
    settings = cell(attention=attention)
    assert TASK.refusal(settings) is None
    stages = []
    tools = Tools("cpu", tmp_path, lambda told: stages.append(told.stage), lambda call: (call(), 1.5)[1])
    (row,) = TASK.run(settings, tools)
    assert set(row) >= ROW
    assert not set(row) & set(settings)
    assert row["total"] == 64
    assert row["accuracy"] == row["correct"] / 64
    assert (row["infer_ms"], row["infer_batch"]) == (1.5, 8)
    assert (row["steps_done"], row["stopped"]) == (4, "finished")
    assert row["tokens"] == TASK.cost(settings).tokens == 4 * 256
    assert row["sparsity_active"] is (attention in ("swa", "nsa", "dma"))
    assert (row["pairs_kept"] is None) == (attention == "nsa")
    assert {"train", "validate", "score", "time"} <= set(stages)


def test_the_cost_counts_the_tokens_of_every_stage(tmp_path):
    settings = cell(curriculum="1+2", steps=10, batch=3, vocab=128)
    (row,) = TASK.run(settings, Tools("cpu", tmp_path))
    assert row["tokens"] == TASK.cost(settings).tokens == 10 * 3 * 32
    assert row["infer_ms"] is None


def test_the_same_cell_gives_the_same_row(tmp_path):
    def row(folder, **changes):
        (found,) = TASK.run(cell(attention="dma", window=6, **changes), Tools("cpu", tmp_path / folder))
        return {name: value for name, value in found.items() if not name.endswith("_s")}

    first = row("first")
    assert row("second") == first
    assert row("third", seed=1)["loss"] != first["loss"]


LEARNING = {"pairs": 4, "seqlen": 16, "steps": 100, "step_tokens": 512}


def test_the_control_learns(tmp_path):
    (row,) = TASK.run(cell(**LEARNING), Tools("cpu", tmp_path))
    assert row["accuracy"] > TASK.control
    assert row["stopped"] == "early"
    assert row["steps_done"] < 100
    assert row["validation_accuracy"] >= STOP_AT


def test_a_sliding_window_recalls_what_it_reaches(tmp_path):
    """The known curve: accuracy rises with the window, near the share of pairs that it reaches, to all of them."""
    rows = []
    for window, steps in ((2, 40), (8, 100), (16, 100)):
        settings = cell(**LEARNING | {"attention": "swa", "window": window, "steps": steps})
        rows += TASK.run(settings, Tools("cpu", tmp_path / str(window)))
    narrow, middle, whole = (row["accuracy"] for row in rows)
    assert rows[0]["pairs_kept"] < 0.1 < rows[1]["pairs_kept"] < 0.9 < rows[2]["pairs_kept"] == 1
    assert narrow + 0.1 < middle < whole - 0.1
    assert narrow < 0.4
    assert whole > TASK.control
    assert middle > 0.7 * rows[1]["pairs_kept"]


def test_defaults_and_presets_name_axes_only():
    names = {axis.name for axis in TASK.axes}
    for blocks in [TASK.defaults.values(), *(preset.blocks for preset in TASK.presets.values())]:
        for block in blocks:
            assert set(block) <= names
    assert set(TASK.presets) == {"quick", "h100", "paper"}


def test_a_gpu_run_that_is_cut_off_has_begun_with_what_claims_need():
    """mha and dma at every length and seed, then their rivals; and every cell has its control."""
    trials = make_trials(TASK, blocks_of(TASK, "h100", {}, "cuda"))
    assert [trial.refusal for trial in trials if trial.refusal] == []
    found = [trial.settings for trial in trials]
    first = [(one["seed"], one["seqlen"], one["attention"]) for one in found[:18]]
    assert first == [(s, T, kind) for s in range(3) for T in (2048, 4096, 8192) for kind in ("mha", "dma")]
    assert all((one["pairs"], one["window"], one["lr"]) in ((512, None, 2e-3), (512, 512, 2e-3)) for one in found[:18])
    own = {axis.name for axis in TASK.axes if axis.only} | {"attention"}
    shared = [tuple((name, value) for name, value in one.items() if name not in own) for one in found]
    dense = {key for one, key in zip(found, shared, strict=True) if one["attention"] == "mha"}
    assert set(shared) == dense
    lengths = {stage.layout.seqlen for one in found[:18] for stage in stages(one["curriculum"], layout_of(one), 2000)}
    assert len(lengths) <= 8


def test_the_paper_preset_is_a_hundred_epochs():
    for block in TASK.presets["paper"].blocks:
        assert isclose(block["steps"] * block["batch"], 100 * 250_000, rel_tol=1e-3)
    impossible = cell(**{"pairs": 512, "seqlen": 1024, "vocab": 8192})
    assert layout_of(impossible).refusal()
