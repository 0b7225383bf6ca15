"""Patterns as a task: what is refused and filled in, what was predicted, what a cell reports, and what is learned."""

import pytest

from dmabench.tasks.pattern_predictions import FAILS, LEARNS, OPEN, needed, predicted
from dmabench.tasks.patterns import TASK
from dmabench.tasks.task import Tools
from dmabench.trials.cells import blocks_of, make_trials

ROW = {"accuracy", "correct", "total", "chance", "validation_accuracy", "loss", "tokens", "train_s", "tokens_per_s"}
ROW |= {"stopped", "parameters", "density", "sparsity_active", "infer_ms", "infer_batch", "exact_match", "predicted"}
TINY = {axis.name: None for axis in TASK.axes} | {
    "pattern": "copy",
    "seqlen": 24,
    "distance": 7,
    "copied": 4,
    "marked": 3,
    "pairs": 3,
    "vocab": 128,
    "test_examples": 16,
    "attention": "mha",
    "d_model": 32,
    "layers": 2,
    "heads": 1,
    "positions": "rope",
    "short_conv": 4,
    "lr": 1e-2,
    "step_tokens": 192,
    "steps": 4,
    "seed": 0,
}
patterns = pytest.mark.parametrize("pattern", ["copy", "select", "induce"])


def cell(**changes):
    return TASK.complete({**TINY, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"distance": 24},
            "nothing in 24 tokens lies 24 places back: --distance must be below --seqlen, so at most 23",
        ),
        ({"distance": 30, "copied": None}, "so at most 23"),
        ({"copied": 20}, "at most 17 can be copied, or raise --seqlen to 27"),
        ({"pattern": "select", "marked": 13}, "the shortest --seqlen that holds them is 26"),
        ({"pattern": "induce", "pairs": 7}, "the shortest --seqlen that holds them is 28"),
        ({"pattern": "induce", "pairs": 6, "seqlen": 23}, "the shortest --seqlen that holds them is 24"),
        ({"pattern": "select", "vocab": 8}, "smallest that does has"),
        ({"vocab": 8}, "smallest that does has"),
        ({"attention": "dma", "window": 0}, "window must be an int of at least 1"),
        ({"attention": "nsa", "window": 8}, "the least is 16"),
        ({"heads": 3}, "choose other --d-model or --heads"),
        ({"lr": 0.0}, "must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes, words):
    assert words in TASK.refusal(cell(**changes))


@patterns
def test_what_follows_is_filled_in(pattern):
    found = cell(pattern=pattern, seqlen=None, attention="dma")
    assert found["seqlen"] == {"copy": 22, "select": 12, "induce": 24}[pattern]
    assert found["window"] == 16
    assert needed(found) == {"copy": 4, "select": 3, "induce": 3}[pattern]
    sizes = {name for name in ("distance", "copied", "marked", "pairs") if found[name] is not None}
    assert sizes == {"copy": {"distance", "copied"}, "select": {"marked"}, "induce": {"pairs"}}[pattern]
    assert TASK.complete(found) == found
    assert TASK.refusal(found) is None


def test_a_stream_is_copied_where_nothing_else_is_said():
    assert cell(copied=None)["copied"] == 24 - 7
    assert (cell(copied=None, seqlen=None)["seqlen"], cell(copied=None, seqlen=None)["copied"]) == (28, 21)
    assert cell(copied=None, attention="dma")["window"] == 34
    assert cell()["window"] is None


def test_a_batch_has_so_many_tokens_where_it_is_not_given():
    assert cell()["batch"] == 8
    assert cell(step_tokens=1)["batch"] == 1
    assert cell(step_tokens=999, batch=8) == cell()


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"attention": "mha"}, LEARNS),
        ({"attention": "mla", "pattern": "induce"}, LEARNS),
        ({"attention": "nsa", "window": 16}, LEARNS),
        ({"attention": "swa", "window": 5}, LEARNS),
        ({"attention": "swa", "window": 4}, FAILS),
        ({"attention": "swa", "window": 7, "layers": 1}, FAILS),
        ({"attention": "swa", "window": 16, "pattern": "select"}, FAILS),
        ({"attention": "swa", "window": 24, "pattern": "select"}, LEARNS),
        ({"attention": "dma", "window": 3}, FAILS),
        ({"attention": "dma", "window": 4}, LEARNS),
        ({"attention": "dma", "window": 2, "pattern": "induce"}, FAILS),
        ({"attention": "dma", "window": 5, "pattern": "induce"}, OPEN),
        ({"attention": "dma", "window": 6, "pattern": "select"}, LEARNS),
    ],
)
def test_predictions_are_as_written(changes, outcome):
    assert predicted(cell(**changes)) == outcome


@patterns
@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "nsa", "dma"])
def test_a_cell_is_one_row(tmp_path, pattern, attention):
    settings = cell(pattern=pattern, attention=attention)
    assert TASK.refusal(settings) is None
    stages = []
    tools = Tools("cpu", tmp_path, lambda told: stages.append(told.stage), lambda call: (call(), 1.5)[1])
    (row,) = TASK.run(settings, tools)
    assert set(row) >= ROW | set(TASK.columns)
    assert not set(row) & set(settings)
    assert row["total"] == 16 * needed(settings)
    assert row["accuracy"] == row["correct"] / row["total"]
    assert row["chance"] == (1 / 63 if pattern == "copy" else 1 / 3)
    assert (row["infer_ms"], row["infer_batch"]) == (1.5, 8)
    assert (row["steps_done"], row["stopped"]) == (4, "finished")
    assert row["tokens"] == TASK.cost(settings).tokens == 4 * 8 * 24
    assert row["sparsity_active"] is (attention in ("swa", "nsa", "dma"))
    assert {"train", "validate", "score", "time"} <= set(stages)


def test_the_same_cell_gives_the_same_row(tmp_path):
    def row(folder, **changes):
        settings = cell(pattern="induce", attention="dma", window=6, **changes)
        (found,) = TASK.run(settings, Tools("cpu", tmp_path / folder))
        return {name: value for name, value in found.items() if not name.endswith("_s")}

    first = row("first")
    assert first["infer_ms"] is None
    assert row("second") == first
    assert row("third", seed=1)["loss"] != first["loss"]


def test_a_copy_is_learned_where_it_is_reached_and_not_where_it_is_not(tmp_path):
    learning = {"copied": 12, "seqlen": 32, "steps": 100, "step_tokens": 1024}
    (dense,) = TASK.run(cell(**learning), Tools("cpu", tmp_path / "mha"))
    assert dense["accuracy"] > TASK.control
    assert dense["stopped"] == "early"
    (window,) = TASK.run(cell(attention="swa", window=2, short_conv=0, **learning), Tools("cpu", tmp_path / "swa"))
    assert window["accuracy"] < 3 * window["chance"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("preset", [None, "quick", "h100", "paper"])
def test_presets_can_be_and_have_their_controls(device, preset):
    """Every pattern with every attention, and beside each cell its like with mha."""
    trials = make_trials(TASK, blocks_of(TASK, preset, {}, device))
    assert [trial.refusal for trial in trials if trial.refusal] == []
    kinds = {(trial.settings["pattern"], trial.settings["attention"]) for trial in trials}
    assert len(kinds) == 15
    own = {axis.name for axis in TASK.axes if axis.only} | {"attention"}

    def shared(settings):
        return tuple((name, value) for name, value in settings.items() if name not in own)

    dense = {shared(trial.settings) for trial in trials if trial.settings["attention"] == "mha"}
    assert all(shared(trial.settings) in dense for trial in trials)


def test_presets_have_windows_below_and_above_what_is_needed():
    for preset in ("quick", "h100", "paper"):
        trials = make_trials(TASK, blocks_of(TASK, preset, {}, "cpu"))
        for pattern in ("copy", "select", "induce"):
            cells = [one.settings for one in trials if one.settings["pattern"] == pattern]
            dma = [one for one in cells if one["attention"] == "dma"]
            assert {predicted(one) for one in dma} >= {FAILS, LEARNS}
            assert all(one["window"] < one["seqlen"] for one in dma)
