"""The task of needles: its cells, what it refuses, and a cell from training to rows."""

import math

import pytest
import torch

from dmabench.errors import Refusal
from dmabench.tasks import needle, needle_scores
from dmabench.tasks.haystacks import KINDS
from dmabench.tasks.kinds import KINDS as ATTENTIONS
from dmabench.tasks.needle import TASK
from dmabench.tasks.needle_presets import QUICK
from dmabench.tasks.task import Tools
from dmabench.tasks.task_model import build_model
from dmabench.trials.cells import blocks_of, make_trials

TINY = {
    "attention": "mha",
    "window": 16,
    "d_model": 16,
    "heads": 2,
    "train_len": 48,
    "test_len": "48,96",
    "depth": "0,100",
    "kind": "single,multi-query",
    "needles": 2,
    "vocab": 64,
    "samples": 3,
    "steps": 3,
    "batch": 4,
}


def cells(preset=None, device="cpu", **given):
    return [trial.settings for trial in make_trials(TASK, blocks_of(TASK, preset, given, device))]


def cell(**given):
    (one,) = cells(**{**TINY, **given})
    return one


def run(tmp_path, time_ms=None, **given):
    settings = cell(**given)
    return TASK.run(settings, Tools("cpu", tmp_path / settings["attention"] / settings["positions"], time_ms=time_ms))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_cell_has_a_row_for_each_length_kind_and_depth(tmp_path, attention):
    rows = run(tmp_path, attention=attention)
    expected = [
        (length, kind, depth) for length in (48, 96) for kind in ("single", "multi-query") for depth in (0, 100)
    ]
    assert [(row["test_len"], row["kind"], row["depth"]) for row in rows] == expected
    for row in rows:
        assert row["total"] == 3 and row["correct"] == round(row["accuracy"] * 3)
        assert row["steps_done"] == 3 and row["tokens"] == 3 * 4 * 48 and row["stopped"] == "finished"
        assert 0 <= row["validation_accuracy"] <= 1 and math.isfinite(row["loss"]) and row["train_s"] > 0
        assert row["sparsity_active"] == (attention not in ("mha", "mla"))
        if attention != "nsa":  # whose branches overlap where a window is so small
            assert row["density"] == 1 if attention in ("mha", "mla") else row["density"] < 1
        assert row["infer_ms"] is None and row["parameters"] > 0
    assert not {"steps", "seed", "window", "train_len", "lr"} & set().union(*rows)  # those are settings


def test_every_attention_is_asked_about_the_same_haystacks(tmp_path, monkeypatch):
    asked = []
    predict = needle_scores.predict

    def recorded(model, input_ids, labels, *rest):
        asked[-1] += [input_ids, labels]
        return predict(model, input_ids, labels, *rest)

    monkeypatch.setattr(needle_scores, "predict", recorded)
    for given in ({"attention": "mha"}, {"attention": "dma"}, {"attention": "swa", "positions": "none", "lr": "0.1"}):
        asked.append([])
        run(tmp_path, **given)
    assert len(asked[0]) == 2 * 8
    for other in asked[1:]:
        assert all(torch.equal(one, same) for one, same in zip(asked[0], other, strict=True))


def test_yarn_is_trained_with_rope_and_stretched_beyond_the_trained_length(tmp_path):
    def figures(row):
        return {name: row[name] for name in ("accuracy", "logprob", "rank", "loss", "validation_accuracy")}

    rope, yarn = (run(tmp_path, positions=positions) for positions in ("rope", "yarn"))
    for one, other in zip(rope, yarn, strict=True):
        assert one["yarn_factor"] is None and other["yarn_factor"] == other["test_len"] / 48
        assert (figures(one) == figures(other)) == (one["test_len"] == 48)


def test_stretched_keeps_the_weights():
    settings = cell(positions="yarn")
    model = build_model({**settings, "positions": "rope"}, 64, 96)
    longer = needle.stretched(model, settings, 96)
    assert needle.stretched(model, settings, 48) is model
    assert (longer.config.positions, longer.config.yarn_factor, longer.config.trained_positions) == ("yarn", 2, 48)
    assert all(torch.equal(x, longer.state_dict()[name]) for name, x in model.state_dict().items())


def test_the_same_cell_again_gives_the_same_figures(tmp_path):
    first, again = (run(tmp_path / name, attention="dma") for name in ("a", "b"))
    clocks = ("train_s", "tokens_per_s")
    strip = [[{k: v for k, v in row.items() if k not in clocks} for row in rows] for rows in (first, again)]
    assert strip[0] == strip[1]


def test_inference_is_timed_once_a_length(tmp_path):
    calls = []

    def time_ms(call):
        calls.append(call())
        return 7.0

    rows = run(tmp_path, time_ms=time_ms)
    assert {row["infer_ms"] for row in rows} == {7.0}
    batches = [row["infer_batch"] for row in rows[::4]]
    assert [tuple(logits.shape) for logits in calls] == [(batch, 1, 64) for batch in batches]
    assert batches == [(1 << 12) // 48, (1 << 12) // 96]


def test_needles_are_learned_and_training_stops(tmp_path):
    given = {"kind": "single", "d_model": "32", "steps": "600", "batch": "16", "lr": "1e-2", "vocab": "128"}
    rows = run(tmp_path, **given, samples=32, stop_at=0.98)
    assert rows[0]["stopped"] == "early" and rows[0]["steps_done"] < 600
    assert rows[0]["validation_accuracy"] >= 0.98
    assert rows[0]["within"] >= TASK.control


def test_test_lengths_follow_from_the_trained_one():
    def lengths(**given):
        return cells(attention="mha", train_len=128, **given)[0]["test_len"]

    assert lengths() == (128,)
    assert lengths(extrapolate=True) == (128, 256, 512, 1024)
    assert lengths(test_len="96,300") == (96, 128, 300)
    assert lengths(test_len="4k", extrapolate=True) == (128, 256, 512, 1024, 4096)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"train_len": 30}, "--train-len 30 is too short for --kind multi-query: 2 needles, .* take 35"),
        ({"test_len": 20}, "--test-len 20 is too short for --kind multi-query: 2 needles, .* take 35"),
        ({"test_len": 12, "kind": "single"}, "--test-len 12 is too short for --kind single: one needle, .* take 17"),
        ({"needles": 9}, "vocabulary of 64 is too small for 9 needles .* raise --vocab or take fewer --needles"),
        ({"depth": "50,101"}, "--depth 101 is not within 0"),
        ({"heads": 3}, "choose other --d-model or --heads"),
        ({"lr": "0"}, "--lr 0 trains nothing"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(given, reason):
    with pytest.raises(Refusal, match=reason):
        cell(**given)


def test_presets_and_defaults_can_be_done():
    for device in ("cpu", "cuda"):
        assert all(TASK.refusal(one) is None for one in cells(device=device))
    found = {name: cells(name) for name in TASK.presets}
    assert all(TASK.refusal(one) is None for preset in found.values() for one in preset)
    assert all({one["attention"] for one in preset} > {"mha", "dma"} for preset in found.values())
    assert {one["positions"] for one in found["h100"]} == {"rope", "yarn", "none"}
    assert all(max(one["test_len"]) == 16384 and one["samples"] >= 64 for one in found["h100"] + found["paper"])
    assert found["h100"] == cells("h100", device="cuda")
    assert all(one["kind"] == tuple(KINDS) for preset in found.values() for one in preset)


def test_cost_counts_training_and_scoring():
    base = TASK.cost(cell())
    assert base.tokens == 3 * 4 * 48
    assert TASK.cost(cell(steps=6)).tokens == 2 * base.tokens
    assert TASK.cost(cell(samples=6)).flops > base.flops
    assert TASK.cost(cell(test_len="48,192")).flops > base.flops
    assert base.mib > 0 and QUICK["samples"] < 64
