"""`--config FILE`: options from TOML, typed ones win, what is unknown is named with the nearest."""

import json
import sys

import pytest
from typer.testing import CliRunner

from dmabench.cli import config
from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.store import runs


@pytest.fixture
def call(tmp_path, monkeypatch):
    """`dmabench WORDS` with a configuration file of that text."""
    monkeypatch.setenv("DMABENCH_RESULTS", str(tmp_path / "results"))

    def run(text, *words):
        file = tmp_path / "options.toml"
        file.write_text(text)
        arguments = [str(file) if word == "FILE" else word for word in words]
        monkeypatch.setattr(sys, "argv", ["dmabench", *arguments])
        return CliRunner().invoke(app, arguments)

    return run


KERNELS = """
[kernels]
seqlen = ["1k", 2048]
kv_heads = 1
no-dense = true
backend = "dma/reference"
"""


def cells(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_options_of_a_command(call):
    found = cells(call(KERNELS, "--config", "FILE", "kernels", "--dry-run", "--json"))
    assert [(cell["seqlen"], cell["kv_heads"], cell["backend"]) for cell in found] == [
        (1024, 1, "reference"),
        (2048, 1, "reference"),
    ]
    assert cells(call(KERNELS, "kernels", "--dry-run", "--json", "--config", "FILE")) == found


@pytest.mark.parametrize("typed", [("--seqlen", "512"), ("--seqlen=512",)])
def test_what_is_typed_wins(call, typed):
    (cell,) = cells(call(KERNELS, "kernels", "--config", "FILE", "--dry-run", "--json", *typed))
    assert cell["seqlen"] == 512 and cell["kv_heads"] == 1


def test_a_run_records_the_whole_command(call, tmp_path):
    result = call(
        '[mask]\nseqlen = 128\nwindow = 16\n[kernels]\nseqlen = "8k"', "--config", "FILE", "mask", "--window", "8"
    )
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "results").iterdir()
    assert runs.read_manifest(path)["argv"] == ["mask", "--seqlen=128", "--window", "8"]
    assert {row["window"] for row in runs.read_rows(path)[0]} == {8}


def test_axes_of_a_task_may_be_lists_and_switches(call):
    text = "[mqar]\npairs = 8\nwindow = [4, 8]\nattention = 'dma'\nfillers = false"
    found = cells(call(text, "--config", "FILE", "mqar", "--dry-run", "--json"))
    assert {(cell["window"], cell["fillers"]) for cell in found} == {(4, False), (8, False)}
    (typed,) = {
        cell["fillers"] for cell in cells(call(text, "--config", "FILE", "mqar", "--fillers", "--dry-run", "--json"))
    }
    assert typed is True


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "[kernels]\nseqlenn = 8",
            "[kernels] has seqlenn, which is no option of dmabench kernels; did you mean seqlen?",
        ),
        ("[kernel]\nseqlen = 8", "[kernel] is no command; did you mean [kernels]?"),
        ("[xyz]", "[xyz] is no command: known are"),
        ("seqlen = 8", "seqlen stands in no section"),
        ("[kernels]\nreplay = 'yes'", "[kernels] replay is a switch: true or false"),
        ("[kernels]\nseqlen = true", "[kernels] seqlen takes a word or a number"),
        ("[kernels]\nseqlen = []", "[kernels] seqlen takes a word or a number"),
        ("[kernels.seqlen]\na = 1", "[kernels] seqlen takes a word or a number"),
        ("[kernels]\nhelp = true", "[kernels] has help, which is no option"),
        ("[kernels", "is no TOML"),
    ],
)
def test_refusals(call, text, why):
    result = call(text, "--config", "FILE", "kernels", "--dry-run")
    assert isinstance(result.exception, Refusal) and why in str(result.exception), result.output


def test_a_file_that_is_not_there(call):
    result = call("", "--config", "nothing.toml", "kernels", "--dry-run")
    assert isinstance(result.exception, Refusal) and "nothing.toml: cannot be read (No such file" in str(
        result.exception
    )


def test_the_option_may_stand_anywhere_but_behind_a_double_dash():
    assert config.in_front(["kernels", "--config", "f", "--quick"]) == ["--config", "f", "kernels", "--quick"]
    assert config.in_front(["kernels", "--config=f"]) == ["--config=f", "kernels"]
    for words in (["kernels", "--", "--config", "f"], ["kernels", "--config"], ["kernels"]):
        assert config.in_front(words) == words
