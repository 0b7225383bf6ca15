"""`dmabench reproduce`: the command of a claim, run and judged."""

import json
import shlex
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from dmabench.claims.verdicts import load_claims
from dmabench.cli import main, reproduce
from dmabench.errors import Refusal
from dmabench.store import runs

CLAIM = "kernel-three-backends-dense"
GROUP = typer.main.get_command(main.app)


@pytest.fixture
def call():
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    reproduce.add_to(app)
    app.command("other")(lambda: None)
    return lambda *words: CliRunner().invoke(app, ["reproduce", *map(str, words)])


@pytest.fixture
def ran(monkeypatch, environment, sweep):
    """Stands for the process of the command: makes a run, with three equal backends of dma, unless it is a dry run; the
    words that it was given."""
    rows = [row for row in sweep if row["backend"] != "cuda"]
    rows += [{**row, "backend": name} for row in rows if row["function"] == "dma" for name in ("cuda", "triton")]
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    given = []

    def run(command, check):
        given.append(command[4:])
        if "--dry-run" not in command:
            root = runs.results_root(command[command.index("--results") + 1])
            made = runs.Run.start(root, "kernels", command[4:], {}, environment)
            for row in rows:
                made.append(row)
            made.finish()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    return given


def test_the_command_alone_goes_to_stdout(call, tmp_path):
    claim = next(one for one in load_claims() if one.id == CLAIM)
    result = call(CLAIM, "--results", tmp_path)
    assert result.exit_code == 0 and result.stdout == f"{claim.command} --results {tmp_path}\n"
    told = " ".join(result.stderr.split())
    assert claim.statement in told and f"{CLAIM}: NO_ROWS" in told


def test_what_stored_runs_say(call, stored):
    root, path = stored
    told = call("kernel-cuda-10x-most-dense", "--results", root).stderr
    assert "NO_ROWS" in told  # the cuda row of the sweep has no time
    found = json.loads(call("kernel-linear-in-length", "--results", root, "--json").stdout)
    assert (
        found["command"].startswith("dmabench kernels --seqlen 8k:128k:x2") and found["id"] == "kernel-linear-in-length"
    )
    assert {one["run"] for one in found["verdicts"]} <= {path.name, None}


def test_running_it_judges_the_run_that_it_made(call, tmp_path, ran, environment):
    runs.Run.start(tmp_path, "kernels", [], {}, environment)  # one that was there before
    result = call("kernel-linear-in-length", "--run", "--results", tmp_path, "--cap", "0.5")
    assert ran == [
        [*shlex.split("kernels --seqlen 8k:128k:x2 --window 1k --pass fwd --cap 0.5"), "--results", str(tmp_path)]
    ]
    assert result.exit_code == 1  # that of the command
    (line,) = result.stdout.splitlines()
    assert line.startswith("kernel-linear-in-length: HOLDS in 2") and "(NVIDIA H100 80GB HBM3): 3 of 3" in line


def test_a_dry_run_has_no_verdict(call, tmp_path, ran):
    result = call(CLAIM, "--run", "--dry-run", "--results", tmp_path)
    assert "--dry-run" in ran[0] and result.stdout == ""


def test_what_cannot_be_measured_says_why(call, tmp_path):
    claim = next(one for one in load_claims() if one.not_testable)
    result = call(claim.id, "--run", "--results", tmp_path)
    assert result.exit_code == 3 and result.stdout == "" and claim.not_testable in " ".join(result.stderr.split())


def test_refusals(call, tmp_path):
    assert f"did you mean {CLAIM}?" in str(call(CLAIM[:-2]).exception)
    result = call(CLAIM, "--run", "--json", "--results", tmp_path)
    assert isinstance(result.exception, Refusal) and "leave one of them out" in str(result.exception)


@pytest.mark.parametrize("command", sorted({claim.command for claim in load_claims()}))
def test_the_command_of_every_claim_is_understood(command):
    first, name, *words = shlex.split(command)
    assert first == "dmabench"
    resolved = GROUP.resolve_command(GROUP.make_context("dmabench", [name]), [name])[1]
    resolved.make_context(name, words)


def test_the_claims_of_the_examples_are_there():
    known = {claim.id for claim in load_claims()}
    examples = [line.split()[2] for line in reproduce.HELP.splitlines() if line.startswith("dmabench reproduce")]
    assert len(examples) == 3 and set(examples) <= known
