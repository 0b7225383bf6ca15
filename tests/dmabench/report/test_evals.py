"""Runs of `dmabench eval` on the report's page, from made-up rows whose every number is known."""

import re

import pytest

from dmabench.report.evals import COMMANDS, eval_group, eval_section
from dmabench.report.page import write_report
from dmabench.store import runs
from dmabench.store.run_folder import read_samples


def row(model, task="piqa", value=0.75, **more):
    """A row as dmabench.evals.run stores it."""
    made = {"model": model, "window_set": None, "window": None, "weights": "00ff", "task": task, "subtask_of": None}
    made |= {"shots": 0, "metric": "acc_norm", "headline": True, "value": value, "stderr": 0.01, "status": "PASSED"}
    made |= {"reason": None, "chance": 0.5, "higher_is_better": True, "limit": None, "data": "hub", "examples": 1000}
    made |= {"of_examples": 1000, "task_hash": "same", "tokens_mean": 80.0, "tokens_max": 200, "truncated": 0.0}
    made |= {"sparsity_active": 0.0, "density": 1.0, "reads": 2048, "batch": 8, "batch_used": 8, "part": 1, "parts": 1}
    made |= {"output_type": "multiple_choice", "cell": f"{model}-{task}"}
    return made | more


@pytest.fixture
def stored(tmp_path, environment, monkeypatch):
    """(rows, scores by model) -> the page of a run that has them, as text."""
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])

    def store(rows, scores):
        run = runs.Run.start(tmp_path / "results", "eval", ["eval", "--suite", "paper"], {}, environment)
        for one in rows:
            run.append(one, {"part": 1, "scores": scores[one["model"]]} if one["model"] in scores else None)
        run.finish()
        return write_report([run.path], tmp_path / "report.html").read_text()

    return store


def cells(text, title):
    """The table under a title: its lines, each the text of its cells."""
    body = text[text.index(title) :]
    lines = re.findall(r"<tr.*?</tr>", body[: body.index("</table>")], re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S) for line in lines]


def test_models_are_columns_compared_on_the_same_examples(stored):
    rows = [row("mha"), row("dma", value=0.5, window=64, sparsity_active=0.25, density=0.9)]
    text = stored(rows, {"mha": [1.0] * 30 + [0.0] * 10, "dma": [0.0] * 30 + [1.0] * 10})
    assert cells(text, "Scores, ± standard error") == [
        ["task", "shots", "metric", "chance", "mha", "dma"],
        ["piqa", "0", "acc_norm % ↑", "50.0", "75.0 ±1.0", "50.0 ±1.0~*"],
    ]
    audit = cells(text, "What the examples asked")
    assert [line[-3:] for line in audit[1:]] == [["0", "100", "mha"], ["25.0", "90.0", "dma"]]
    assert "<li>* differs from the first model" in text and "<li>~ not above chance" in text
    assert text.count('id="eval"') == 1 and "dmabench eval --suite paper" in text and "0123456" in text
    assert "No charts" not in text[text.index('id="eval"') : text.index('id="claims"')]


def test_the_paper_s_figures_are_grey_and_marked_as_reported(stored):
    text = stored([row("ours"), row("ours", shots=5, cell="five", value=0.8)], {})
    lines = cells(text, "Beside Table 2 of arXiv 2508.02124, reported by others")
    names = [f"{name} 1.7B, reported" for name in ("MHA", "NSA", "DMA")] + ["ours, measured"]
    assert [line[:2] for line in lines[1:]] == [[name, shots] for shots in "05" for name in names]
    assert [lines[4][7], lines[8][7]] == ["75.0", "80.0"] and lines[4][-1] == ""
    body = text[text.index("Beside Table 2") : text.index('id="claims"')]
    classes = re.findall(r"<tr([^>]*)><td", body[: body.index("</table>")])
    assert [bool(one) for one in classes] == [True, True, True, False] * 2


def test_samples_have_no_table_beside_the_paper_s(stored):
    text = stored([row("m", data="sample")], {})
    assert "Beside Table 2" not in text and "a score on them says nothing" in text


def test_words_of_a_run_are_escaped_and_failures_marked(stored):
    evil = "<script>alert(1)</script>"
    failed = {"model": "dma", "window_set": None, "task": "mmlu", "subtask_of": None, "shots": None, "cell": "c"}
    failed |= {"status": "RUNTIME_ERROR", "reason": evil, "part": 1, "parts": 1}
    text = stored([row("m" + evil, evil), failed], {})
    assert "<script" not in text and "m&lt;script&gt;alert(1)" in text
    body = text[text.index("Scores, ±") :]
    assert '<tr class="bad"><td class="w">mmlu' in body[: body.index("</table>")]
    assert "RUNTIME_ERROR: &lt;script&gt;" in text


def test_every_table_scrolls_in_its_own_box(stored):
    text = stored([row(f"model-{number}") for number in range(12)], {})
    section = text[text.index('id="eval"') : text.index('id="claims"')]
    assert section.count("<table>") == 3 == len(re.findall(r'<div class="box[^>]*><table>', section))


def test_a_run_without_rows_says_so_and_no_run_says_what_to_run(environment):
    section = eval_section("name", {"environment": environment, "status": "interrupted"}, [], [], 0)
    assert section["notes"] == ["no task was scored"] and section["tables"] == []
    assert eval_group([section, {"task": "train"}, {}])["runs"] == [section]
    group = eval_group([])
    assert group["runs"] == [] and group["commands"] == COMMANDS


def test_damaged_samples_are_skipped(tmp_path):
    assert read_samples(tmp_path) == []
    (tmp_path / "samples.jsonl").write_bytes(
        b'{"cell": "a", "scores": [1]}\n\n[1]\n{"cell": "b", "sco\n\xff\n{"cell": "c"}\n'
    )
    assert [one["cell"] for one in read_samples(tmp_path)] == ["a", "c"]
