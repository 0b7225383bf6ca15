"""Tables of an evaluation, from made-up rows whose every number is known."""

from typing import Any

import pytest

from dmabench.evals.significance import compare, line_of
from dmabench.evals.tables import PAPER, audits, beside_paper, notes, number, scores, table
from dmabench.summaries.reported import reported


def row(model: str = "mha", task: str = "piqa", metric: str = "acc_norm", value: float = 0.75, **more: Any) -> dict:
    """A row as dmabench.evals.run stores it."""
    made: dict[str, Any] = {"model": model, "window_set": None, "window": None, "weights": "00ff", "task": task}
    made |= {"subtask_of": None, "shots": 0, "metric": metric, "headline": True, "value": value, "stderr": 0.01}
    made |= {"status": "PASSED", "reason": None, "chance": 0.5, "higher_is_better": True, "limit": None, "data": "hub"}
    made |= {"examples": 1000, "of_examples": 1000, "task_hash": "same", "tokens_mean": 80.0, "tokens_max": 200}
    made |= {"truncated": 0.0, "sparsity_active": 0.0, "density": 1.0, "reads": 2048, "batch": 8, "batch_used": 8}
    made |= {"output_type": "multiple_choice", "part": 1} | more
    return made | {"cell": f"{model}-{task}-{made['shots']}-{made['window_set']}"}


def samples(rows: list[dict], by_model: dict[str, list[float]]) -> list[dict]:
    return [{"cell": one["cell"], "part": one["part"], "scores": by_model[one["model"]]} for one in rows]


def test_a_line_a_task_and_a_column_a_model():
    rows = [
        row(),
        row("dma", value=0.5, window=512),
        row("dma", value=0.8, window=512, window_set=64),
        row(task="lambada_openai", metric="perplexity", value=15.2, stderr=None, chance=None, higher_is_better=False),
        row("dma", task="mmlu", shots=5, subtask_of="x"),
        row("dma", metric="acc", headline=False),
    ]
    headers, cells = scores(rows, {})
    assert headers == ["task", "shots", "metric", "chance", "mha", "dma", "dma w=64"]
    assert cells == [
        ["piqa", "0", "acc_norm % ↑", "50.0", "75.0 ±1.0", "50.0 ±1.0~", "80.0 ±1.0"],
        ["lambada_openai", "0", "perplexity ↓", "", "15.2", "", ""],
    ]


def test_what_could_not_be_scored_stands_in_the_table():
    failed = {"model": "dma", "window_set": None, "task": "mmlu", "subtask_of": None, "shots": None, "cell": "c"}
    rows = [row(), {**failed, "status": "OUT_OF_MEMORY", "reason": "no room"}]
    assert scores(rows, {})[1][1] == ["mmlu", "", "", "", "", "OUT_OF_MEMORY"]
    assert "dma, mmlu: OUT_OF_MEMORY: no room" in notes(rows, {})


def test_few_right_answers_are_not_above_chance():
    """Three of three: an error of 0 says nothing, the interval does."""
    found = scores([row(value=1.0, stderr=0.0, examples=3), row("b", value=1.0, stderr=0.0, examples=400)], {})[1]
    assert found[0][4:] == ["100.0 ±0.0~", "100.0 ±0.0"]


def test_models_are_compared_with_the_first_on_the_same_examples():
    a, b, c = ([1.0] * 30 + [0.0] * 10, [0.0] * 30 + [1.0] * 10, [1.0] * 30 + [0.0] * 10)
    rows = [row(model, task) for model in "abc" for task in ("piqa", "mmlu")]
    found = compare(rows, samples(rows, {"a": a, "b": b, "c": c}))
    line = line_of(rows[0])
    assert found["b", line] == pytest.approx(2 * 0.00222, rel=0.05)  # Holm over two tasks
    assert found["c", line] == 1 and not any(name == "a" for name, _ in found)
    cells = scores(rows, found)[1]
    assert [cell.endswith("*") for cell in cells[0][4:]] == [False, True, False]
    assert any(note.startswith("* differs from the first model") for note in notes(rows, found))


def test_other_examples_are_not_compared():
    rows = [row("a"), row("b", task_hash="other")]
    assert compare(rows, samples(rows, {"a": [1.0, 0.0], "b": [0.0, 1.0]})) == {}
    rows = [row("a"), row("b")]
    assert compare(rows, []) == {}


def test_audit_joins_models_that_agree():
    rows = [row(), row("b"), row("dma", sparsity_active=0.25, density=0.9, window=64, examples=10)]
    headers, cells = audits(rows)
    assert cells[0][-1] == "mha, b" and cells[0][headers.index("density %")] == "100"
    assert cells[1][2] == "10 of 1000" and cells[1][headers.index("sparse %")] == "25.0"


def test_notes_say_what_to_doubt():
    rows = [
        row(data="sample"),
        row("u", weights="untrained:tiny"),
        row("l", limit=5),
        row("t", truncated=0.125),
        row("r", output_type="loglikelihood_rolling", truncated=1.0),
        row("o", batch_used=2),
        row("w", window=512),
        row("c", value=0.5),
    ]
    text = "\n".join(notes(rows, {}))
    for told in (
        "sample data",
        "u: random weights",
        "--limit",
        "t, piqa, 0 shots: 12.5% of the examples are longer than the 2048 tokens that the model reads, and were cut",
        "r, piqa, 0 shots: 100% of the examples are",
        "and were scored in pieces",
        "batches of 2, not 8",
        "nothing was sparse: piqa, with w (window 512)",
        "not above chance",
    ):
        assert told in text
    assert notes([row()], {}) == []


def test_the_paper_s_table_is_marked_as_reported():
    rows = [
        row("ours", task, metric, 0.4) for parts in PAPER.values() for task, metric in parts if metric != "perplexity"
    ]
    rows.append(row("ours", "lambada_openai", "perplexity", 20.0))
    rows.append(row("half", "piqa", shots=5))
    headers, cells = beside_paper(rows)
    assert headers[2:] == [*PAPER, "average"]
    assert [line[0] for line in cells] == [
        *(f"{name} 1.7B, reported" for name in ("MHA", "NSA", "DMA")),
        "ours, measured",
        *(f"{name} 1.7B, reported" for name in ("MHA", "NSA", "DMA")),
        "half, measured",
    ]
    assert cells[3][1:] == ["0", "20", *["40.0"] * 9]
    assert [line[1] for line in cells[4:]] == ["5"] * 4 and cells[7][-1] == ""  # no average of a part
    for at, name in enumerate(("MHA", "NSA", "DMA")):
        values = reported()["pretrain_1_7B"]["zero_shot"][name]
        assert cells[at][2:] == [f"{value:g}" for value in values] and len(values) == len(PAPER) + 1


def test_no_table_beside_what_is_not_comparable():
    assert beside_paper([row(data="sample"), row(limit=10), row(shots=3), row(task="sciq")]) is None


def test_numbers_and_a_table():
    assert [number(0.4431, "acc"), number(15.219, "perplexity"), number(4.5e13, "perplexity"), number(None, "acc")] == [
        "44.3",
        "15.22",
        "4.50e+13",
        "",
    ]
    assert number(0.5, "4096") == "50.0" and number(1.234, "bits_per_byte") == "1.234"
    assert len(table(*scores([row()], {}), "title").rows) == 1
