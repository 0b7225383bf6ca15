import random
from dataclasses import replace

import pytest

from dmabench.summaries.controls import choose_rates, judged, rate_key
from dmabench.tasks.task import Axis


def status(task, rows):
    return [row["status"] for row in judged(task, rows)]


def test_rows_with_a_sound_control_stay_as_they_are(trained):
    rows = [trained.made_up(trained.MQAR, kind, 0.97) for kind in ("mha", "dma", "mla")]
    assert status(trained.MQAR, rows) == ["PASSED"] * 3
    assert all(row["control"] == 0.97 and row["chosen"] for row in judged(trained.MQAR, rows))


def test_one_control_below_the_level_undoes_all_rows_of_its_settings_alone(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [make(task, "mha", 0.94), make(task, "dma", 0.99), make(task, "swa", 0.99, window=1024)]
    rows += [make(task, "mha", 0.95, d_model=128), make(task, "dma", 0.5, d_model=128)]
    assert status(task, rows) == ["UNDERTRAINED"] * 3 + ["PASSED"] * 2
    told = judged(task, rows)[1]
    assert "MHA itself reaches 0.940" in told["reason"] and "0.95 is needed" in told["reason"]
    assert rows[1]["status"] == "PASSED" and rows[1]["reason"] is None  # what was stored is not changed


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (None, "MHA was not run with these settings"),
        ({"status": "OUT_OF_MEMORY", "reason": "needs 90 GiB"}, "is OUT_OF_MEMORY: needs 90 GiB"),
    ],
)
def test_a_missing_control_is_told_from_one_that_failed(trained, control, words):
    rows = [trained.made_up(trained.MQAR, "dma", 0.99)]
    if control:
        rows.append(trained.made_up(trained.MQAR, "mha", None, **control))
    told = judged(trained.MQAR, rows)
    assert told[0]["status"] == "UNDERTRAINED" and words in told[0]["reason"]
    assert [row["status"] for row in told[1:]] == [row["status"] for row in rows[1:]]


def test_the_control_is_a_mean_over_its_seeds(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [make(task, "mha", value, seed=seed) for seed, value in enumerate((1.0, 0.96, 0.92))]
    rows += [make(task, "dma", 0.9, seed=7)]
    assert status(task, rows) == ["PASSED"] * 4
    rows[2] |= {"accuracy": 0.80}
    assert status(task, rows) == ["UNDERTRAINED"] * 4


def test_a_needle_is_controlled_at_trained_lengths_and_by_kind(trained):
    make, task = trained.made_up, trained.NEEDLE
    rows = [make(task, "mha", 0.95), make(task, "mha", 0.1, test_len=2048)]
    rows += [make(task, "dma", 0.9), make(task, "dma", 0.2, test_len=2048)]
    rows += [make(task, "mha", 0.3, kind="multi-key"), make(task, "dma", 0.9, kind="multi-key")]
    assert status(task, rows) == ["PASSED"] * 4 + ["UNDERTRAINED"] * 2
    assert "at trained lengths" in judged(task, rows)[-1]["reason"]


def test_the_rate_is_chosen_on_validation_and_never_on_test(trained):
    make, task = trained.made_up, trained.MQAR
    good = [make(task, "dma", 0.6, lr=1e-3, seed=seed, validation_accuracy=0.9) for seed in (0, 1)]
    lucky = [make(task, "dma", 0.99, lr=3e-3, seed=seed, validation_accuracy=v) for seed, v in ((0, 0.95), (1, 0.5))]
    told = judged(task, [*good, *lucky])
    assert [row["chosen"] for row in told] == [True, True, False, False]


def test_rates_are_compared_over_the_seeds_they_share(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [make(task, "dma", 0.5, lr=1e-3, seed=seed, validation_accuracy=v) for seed, v in ((0, 0.9), (1, 0.1))]
    rows += [make(task, "dma", 0.5, lr=3e-3, seed=0, validation_accuracy=0.8)]
    assert choose_rates(task, rows)[rate_key(task, rows[0])] == 1e-3


def test_a_control_of_a_rate_that_was_not_chosen_does_not_count(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [
        make(task, "mha", 0.90, lr=1e-3, validation_accuracy=0.99),
        make(task, "mha", 0.99, lr=3e-3, validation_accuracy=0.98),
        make(task, "dma", 0.99, lr=3e-3),
    ]
    assert judged(task, rows)[2]["control"] == 0.90 and status(task, rows)[2] == "UNDERTRAINED"


def test_a_rate_that_failed_is_not_chosen_and_ties_take_the_smaller(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [make(task, "dma", None, lr=1e-4, status="RUNTIME_ERROR"), make(task, "dma", 0.9, lr=1e-2)]
    rows += [make(task, "dma", 0.9, lr=1e-3)]
    assert choose_rates(task, rows)[rate_key(task, rows[0])] == 1e-3
    assert choose_rates(task, rows[:1])[rate_key(task, rows[0])] == 1e-4


def test_the_order_of_rows_does_not_matter(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [
        make(task, kind, value, lr=lr, seed=seed, d_model=width)
        for width in (64, 128)
        for kind, value in (("mha", 0.97 if width == 64 else 0.5), ("dma", 0.8))
        for lr in (1e-3, 3e-3)
        for seed in (0, 1)
    ]
    marks = {str(sorted(row.items(), key=str)): status for row, status in zip(rows, status(task, rows), strict=True)}
    shuffled = random.Random(0).sample(rows, len(rows))
    again = {str(sorted(row.items(), key=str)): one for row, one in zip(shuffled, status(task, shuffled), strict=True)}
    assert again == marks and set(marks.values()) == {"PASSED", "UNDERTRAINED"}


def test_a_needle_control_that_failed_has_one_row_for_all_its_parts(trained):
    make, task = trained.made_up, trained.NEEDLE
    whole = {"test_len": [1024, 2048], "depth": [0, 50], "kind": ["single", "multi-key"]}
    rows = [make(task, "mha", None, status="OUT_OF_MEMORY", reason="needs 90 GiB", **whole), make(task, "dma", 0.9)]
    told = judged(task, rows)[1]
    assert told["status"] == "UNDERTRAINED" and "is OUT_OF_MEMORY: needs 90 GiB" in told["reason"]


def test_a_model_with_dense_attention_controls_the_other_models(trained):
    task = replace(trained.NEEDLE, axes=(*trained.NEEDLE.axes, Axis("model", str, "Models.", names_model=True)))

    def row(kind, accuracy, **more):
        fields = {"model": f"{kind}@1", "haystack": "text", "train_len": 1024, "test_len": 1024, "lr": None} | more
        return trained.made_up(task, kind, accuracy, **fields)

    assert status(task, [row("mha", 0.97), row("dma", 0.5), row("dma", 0.6, model="dma@2")]) == ["PASSED"] * 3
    low, other = judged(task, [row("mha", 0.5), row("dma", 0.97)])
    assert (low["status"], other["status"]) == ("UNDERTRAINED", "UNDERTRAINED")
    assert other["reason"].endswith("take a model that was trained longer")
    (alone,) = judged(task, [row("dma", 0.97)])
    assert "no model with dense attention was scored" in alone["reason"] and "--model" in alone["reason"]
