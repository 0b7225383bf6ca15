"""`dmabench needle --model`: checkpoints from the command line to rows, table, heat map and report."""

import json
from contextlib import contextmanager

import pytest
import torch
import typer
from typer.testing import CliRunner

from dmabench.cli import main, report, tasks, tasks_run
from dmabench.errors import Refusal
from dmabench.tasks import synthetic_text, tokenizer
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config
from dmabench.trials.run import in_process


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two checkpoints of ours, each in a folder `model`, as `dmabench train` leaves them."""
    root = tmp_path_factory.mktemp("models")
    words = tokenizer.train([*synthetic_text.documents()][:40], 300)
    torch.manual_seed(0)
    for kind in ("mha", "dma"):
        config = model_config("tiny", kind, vocab_size=320, window=64, max_position_embeddings=700)
        DmabenchForCausalLM(config).save_pretrained(root / kind / "model")
        words.save(root / kind / "model")
    return root


@pytest.fixture(scope="module")
def call():
    @contextmanager
    def here(path, options, ranks, jobs):
        yield in_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks_run, "_runner", here)
        patch.setattr("dmabench.trials.worker.SAMPLING_S", 0.02)
        patch.setenv("DMABENCH_COMMIT", "0" * 40)
        app = typer.Typer(cls=main.Commands, rich_markup_mode="rich", pretty_exceptions_enable=False)
        for command in (tasks, report):
            command.add_to(app)
        yield lambda *words: CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def finished(call, folders, tmp_path_factory):
    """A run of both models at two lengths, the longer of which neither reads."""
    root = tmp_path_factory.mktemp("results")
    asked = ("--test-len", "640,800", "--kind", "single", "--depth", "0,100", "--samples", "2", "--device", "cpu")
    words = ("needle", "--model", folders / "mha/model", "--model", folders / "dma/model", *asked, "--results", root)
    return root, words, call(*words)


def test_every_model_has_its_rows_under_a_name_of_its_own(finished):
    root, _, result = finished
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for path in root.glob("*/rows.jsonl") for line in path.read_text().splitlines()]
    assert [(row["attention"], row["test_len"], row["depth"], row["status"]) for row in rows] == [
        (kind, *cell)
        for kind in ("mha", "dma")
        for cell in ((640, 0, "PASSED"), (640, 100, "PASSED"), (800, [0, 100], "UNSUPPORTED"))
    ]
    assert {row["model"] for row in rows} == {f"{row['attention']}@{row['weights'][:6]}" for row in rows}
    assert all(row["task"] == "needle" and row["haystack"] == "text" and row["lr"] is None for row in rows)
    assert str(root) not in "".join(path.read_text() for path in root.glob("*/*.json*"))


def test_the_table_and_its_notes_tell_the_models_apart(finished):
    _, _, result = finished
    assert "mha@" in result.stdout and "dma@" in result.stdout and "640" in result.stdout
    told = " ".join(result.stderr.split())
    assert "hidden in the text synthetic (made-up words, no language)" in told
    assert "model has positions for 700 tokens: --test-len 800 is too long" in told
    assert "MHA, the control, needs 0.9 and reaches 0.000: take a model that was trained longer" in told
    assert "seeds are of the haystacks" in told and "--steps" not in told


def test_the_heat_map_has_a_field_for_each_model(finished):
    root, _, _ = finished
    (chart,) = root.glob("*/needle-accuracy.svg")
    assert len(list(root.glob("*/needle-accuracy*.svg"))) == 1
    assert "mha mha@" in (words := chart.read_text()) and "dma dma@" in words
    assert "in the text synthetic" in words


def test_the_report_has_the_run(finished, call, tmp_path):
    root, _, _ = finished
    page = tmp_path / "page.html"
    result = call("report", *root.iterdir(), "--out", page)
    assert result.exit_code == 0, result.output
    assert "Needles in haystacks" in (words := page.read_text()) and "dma@" in words


def test_a_resumed_run_scores_nothing_again(finished, call):
    root, words, _ = finished
    before = [path.read_text() for path in root.glob("*/rows.jsonl")]
    result = call(*words, "--resume", "latest")
    assert result.exit_code == 0, result.output
    assert [path.read_text() for path in root.glob("*/rows.jsonl")] == before


def test_a_dry_run_tells_the_cells(call, folders, tmp_path):
    words = ("--model", f"{folders / 'mha/model'},{folders / 'dma/model'}", "--test-len", "640", "--device", "cpu")
    result = call("needle", *words, "--window", "16,32", "--dry-run", "--results", tmp_path)
    assert result.exit_code == 0, result.output
    assert "needle: 3 cells" in result.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model", "no/folder"), "there is no folder no/folder"),
        (("--model", "untrained:tiny", "--lr", "1e-3"), "leave out --lr"),
        (("--model", "untrained:tiny", "--quick"), "leave out --preset quick"),
        (("--data", "synthetic"), "--data goes with --model"),
        (("--model", "untrained:tiny", "--test-len", "100"), "--test-len 100 is too short for --kind"),
        (("--model", "untrained:tiny", "--data", "few.txt"), "the text few.txt has"),
    ],
)
def test_bad_input_is_refused_with_a_sentence_and_leaves_no_run(call, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.txt").write_text("Few words.")
    result = call("needle", *words, "--device", "cpu", "--results", tmp_path / "results")
    assert isinstance(result.exception, Refusal) and told in str(result.exception), result.exception
    assert not (tmp_path / "results").exists()
