"""Models on the same held-out text, and the command that shows them."""

import json
import math

import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import perplexity
from dmabench.errors import Refusal

TEXT = [f"Document {number}: the river is {number} miles long, and the road is longer." for number in range(6)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held.jsonl"
    path.write_text("".join(json.dumps({"text": line, "other": line[::-1]}) + "\n" for line in TEXT) + "{broken\n")
    return path


@pytest.fixture
def call():
    app = typer.Typer(pretty_exceptions_enable=False)
    perplexity.add_to(app)
    return lambda *words: CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(word) for word in words])


def lines(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_rows_of_two_models_at_two_lengths(call, text):
    models = ["--model", "untrained:tiny:mha", "--model", "untrained:tiny:dma"]
    rows = lines(call(*models, "--data", text, "--seqlen", "16,32", "--device", "cpu", "--json"))
    assert [(row["attention"], row["seqlen"]) for row in rows] == [("mha", 16), ("mha", 32), ("dma", 16), ("dma", 32)]
    size = sum(len(line.encode()) for line in TEXT)
    for row in rows:
        assert (row["documents"], row["bytes"], row["tokens"]) == (6, size, size + 6)  # bytes, and the end of each
        assert row["bits_per_byte"] == pytest.approx(math.log2(row["perplexity"]) * row["tokens"] / size)
        assert row["low"] <= row["bits_per_byte"] <= row["high"]
    assert rows[0]["difference"] is None and rows[1]["difference"] is None
    for base, other in zip(rows[:2], rows[2:], strict=True):
        assert other["difference"] == pytest.approx(other["bits_per_byte"] - base["bits_per_byte"])
        assert other["difference_low"] <= other["difference"] <= other["difference_high"]


def test_the_table_and_what_was_skipped(call, text):
    result = call("--model", "untrained:tiny", "--data", text, "--device", "cpu", "--tokens", 96)
    assert result.exit_code == 0
    for told in ("held.jsonl · 6 documents · 96 tokens", "bits/byte by position in the sequence"):
        assert told in result.stdout
    assert "1 part of the text skipped: held.jsonl line 7: no JSON" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "/missing.txt"], "there is no such file or folder"),
        (["--strict"], "line 7: no JSON; repair it"),
        (["--text-field", "body"], "the fields are other, text"),
        (["--model", "/missing"], "there is no folder /missing"),
        (["--seqlen", "64k"], "reads 32768 tokens at most"),
        (["--seqlen", "1"], "the least is 2"),
    ],
)
def test_what_cannot_be_is_refused(call, text, words, told):
    result = call("--model", "untrained:tiny", "--data", text, "--device", "cpu", *words)
    assert isinstance(result.exception, Refusal) and told in str(result.exception)


def test_one_document_has_no_interval(call, tmp_path):
    (tmp_path / "a.txt").write_text("one document")
    (row,) = lines(call("--model", "untrained:tiny", "--data", tmp_path / "a.txt", "--device", "cpu", "--json"))
    assert row["low"] is None and row["high"] is None


def test_the_length_that_a_model_was_trained_at(tmp_path):
    from dmabench.evals.held_out import _trained_length

    assert _trained_length(None) is None and _trained_length(tmp_path) is None
    for settings, length in (({"seqlen": 64, "stage2_seqlen": None}, 64), ({"seqlen": 64, "stage2_seqlen": 256}, 256)):
        (tmp_path / "training.json").write_text(json.dumps({"settings": settings}))
        assert _trained_length(tmp_path) == length
