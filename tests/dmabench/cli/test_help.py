"""--help of every command has examples, which the command understands, and the shell can complete."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import completion
from dmabench.cli.main import app
from dmabench.tasks import registry

GROUP = typer.main.get_command(app)
NAMES = list(GROUP.commands)


def resolved(name):
    """The command as it is called: a task's has its axes only then."""
    return GROUP.resolve_command(GROUP.make_context("dmabench", [name]), [name])[1]


def test_the_walk_meets_every_command():
    assert {"kernels", "mask", "report", "list", "doctor", "env", "export", "perplexity", "eval"} <= set(NAMES)
    assert set(registry.names()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples_that_are_understood(name):
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    _, _, told = result.stdout.partition("Examples")
    lines = [line.strip(" │") for line in told.splitlines()]
    examples = [shlex.split(line) for line in lines if " dmabench " in f" {line} " or " -m dmabench " in f" {line} "]
    assert len(examples) >= 3, result.stdout
    for words in examples:
        words = words[words.index("dmabench") + 1 :]
        words = words[: words.index(">")] if ">" in words else words
        assert words[0] == name
        resolved(name).make_context(name, words[1:])  # raises where an option or a value is unknown


def test_the_first_page_names_every_command_and_the_file_of_options():
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--help"])
    assert all(f" {name} " in result.stdout for name in NAMES)
    assert "--config" in result.stdout and "--install-completion" in result.stdout


def completed(words, at):
    """What bash is offered for the word at that place."""
    env = {"_DMABENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    return CliRunner().invoke(app, [], prog_name="dmabench", env=env).stdout.split()


def test_the_shell_completes_commands_options_and_runs(stored, monkeypatch):
    root, path = stored
    monkeypatch.setenv("DMABENCH_RESULTS", str(root))
    assert completed("dmabench ker", 1) == ["kernels"]
    assert completed("dmabench kernels --seq", 2) == ["--seqlen"]
    assert completed("dmabench list ba", 2) == ["backends"]
    assert completed("dmabench export ", 2) == ["latest", path.name]
    assert "--pairs" in completed("dmabench mqar --pa", 2)


def test_runs_and_claims_are_offered_by_their_beginning(stored, monkeypatch):
    root, path = stored
    monkeypatch.setenv("DMABENCH_RESULTS", str(root))
    assert list(completion.runs_here(path.name[:4])) == [path.name]
    monkeypatch.setenv("DMABENCH_RESULTS", str(path / "rows.jsonl"))
    assert list(completion.runs_here("")) == ["latest"]
    found = dict(completion.claims("kernel-v1-"))
    assert set(found) == {"kernel-v1-cuda", "kernel-v1-triton", "kernel-v1-flex"} and all(found.values())
