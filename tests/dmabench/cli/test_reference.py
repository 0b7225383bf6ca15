"""`dmabench reference`: its list can be run as written, and calls go on where the last one stopped."""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import main, reference
from dmabench.errors import Refusal
from dmabench.store import environment as environment_module
from dmabench.store import runs

SHA = "0123456789abcdef0123456789abcdef01234567"
CHILD = """
import signal, sys, time
from pathlib import Path
from dmabench.store import runs
root, resume = sys.argv[sys.argv.index("--results") + 1], "--resume" in sys.argv
command, settings, about = sys.argv[1], {}, {"git": {"sha": "COMMIT", "dirty": False}}
runs.environment_module.gpu_state = lambda: []
if resume:
    run = runs.Run.resume(runs.find_run(runs.results_root(root), sys.argv[-1]), command, settings, about)
else:
    run = runs.Run.start(runs.results_root(root), command, sys.argv[1:], settings, about)
try:
    run.append({"cell": f"cell {len(run.done())}", "status": "PASSED"})
    Path(__file__).with_name("stored").touch()
    time.sleep(0 if resume or "--pass" not in sys.argv else 600)
    run.finish()
except KeyboardInterrupt:
    run.finish("interrupted")
    sys.exit(130)
""".replace("COMMIT", SHA)
"""Stands for a measuring command: stores a row; the first time a part with --pass is run it takes long."""


@pytest.fixture
def call(monkeypatch, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(reference, "COMMAND", (sys.executable, "-P", str(script)))
    monkeypatch.setattr(environment_module, "git_state", lambda: {"sha": SHA, "dirty": False})
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    reference.add_to(app)
    app.command("other")(lambda: None)
    return lambda *words: CliRunner().invoke(
        app, ["reference", *map(str, words), "--results", str(tmp_path / "results")]
    )


@pytest.mark.parametrize("quick", [False, True])
def test_every_part_is_a_command_with_options_that_it_has(quick):
    group = typer.main.get_command(main.app)
    names = [part.part for part in reference.parts(quick)]
    assert len(names) == len(set(names)) > 10
    for part in reference.parts(quick):
        name, *words = reference.words_of(part, lambda: [Path("model")], {"text": "text", "lm_eval": "items"})
        context = typer.Context(group)
        _, command, _ = group.resolve_command(context, [name])
        parser = command.make_parser(typer.Context(command))
        parser.parse_args([*words])  # raises at an unknown option


def test_folders_are_put_in_and_options_of_folders_that_are_not_given_left_out():
    part = reference.Part("x", "eval {models} --tasks a --data {lm_eval}", "")
    two = [Path("a b"), Path("c")]
    given = reference.words_of(part, lambda: two, {"lm_eval": "items", "text": None})
    assert given == shlex.split("eval --model 'a b' --model c --tasks a --data items")
    left = reference.words_of(part, lambda: two, {"lm_eval": None, "text": None})
    assert left == shlex.split("eval --model 'a b' --model c --tasks a")
    with pytest.raises(Refusal, match="run `language` first"):
        reference.words_of(part, list, {"lm_eval": None, "text": None})


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Makes time, as `reference` has it, go by only while a command is waited for that has stored a row."""
    now = [0.0]

    class Process(subprocess.Popen):
        waited = False

        def wait(self, timeout=None):
            if timeout is None or self.waited:
                return super().wait(timeout)
            self.waited = True
            deadline = time.monotonic() + 180
            while not (tmp_path / "stored").exists() and self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            now[0] += timeout
            raise subprocess.TimeoutExpired(self.args, timeout)

    own = SimpleNamespace(Popen=Process, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(reference, "subprocess", own)
    monkeypatch.setattr(reference, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_quick_list_has_parts_of_its_own(call):
    assert "kernels --quick" in call("kernels", "--quick", "--dry-run").stdout
    assert "there is no part 'kernels'" in str(call("kernels", "--dry-run").exception)


def test_goes_on_where_the_time_ended_and_leaves_alone_what_is_complete(call, tmp_path, clock):
    first = call("backward", "mqar", "--seconds", "50")
    assert first.exit_code == 130 and clock == [50.0], first.output
    assert "out of time" in first.stdout and "no time left" in first.stdout
    (path,) = runs.run_paths(tmp_path / "results" / "backward")
    assert runs.read_manifest(path)["status"] == "interrupted"
    assert "begun (interrupted)" in call("backward", "--dry-run").stdout

    second = call("backward", "mqar")
    assert second.exit_code == 0 and second.stdout.count("complete") == 2
    assert runs.read_manifest(path)["status"] == "finished" and len(runs.read_rows(path)[0]) == 2

    third = call("backward", "mqar")
    assert third.exit_code == 0 and "dmabench kernels" not in third.stderr
    assert len(runs.run_paths(tmp_path / "results")) == 2


def test_a_run_of_another_commit_is_no_answer(call, monkeypatch, tmp_path):
    assert call("mqar").exit_code == 0
    monkeypatch.setattr(environment_module, "git_state", lambda: {"sha": "f" * 40, "dirty": False})
    assert "to do" in call("mqar", "--dry-run").stdout


def test_a_part_that_cannot_be_run_says_why_and_the_next_one_runs(call):
    result = call("downstream", "mqar")
    assert result.exit_code == 3 and "run `language` first" in result.stderr and "complete" in result.stdout


def test_a_failing_command_is_told(call, monkeypatch):
    monkeypatch.setattr(reference, "COMMAND", (sys.executable, "-c", "raise SystemExit(2)"))
    result = call("mqar")
    assert result.exit_code == 2 and "exit code 2" in result.stdout


def test_what_does_not_stop_is_killed(monkeypatch):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(reference, "GRACE_S", 0.2)
    process = subprocess.Popen(
        [sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    begun = time.monotonic()
    assert reference._stop(process) == -9
    assert time.monotonic() - begun < 30


def test_what_has_ended_already_needs_no_stopping():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"], start_new_session=True)
    process.wait()
    assert reference._stop(process) == 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["backwards"], "did you mean backward?"),
        (["--seconds", "0"], "a number above 0"),
        (["--text", "nowhere"], "--text nowhere does not exist"),
        (["--lm-eval", "nowhere"], "--lm-eval nowhere does not exist"),
    ],
)
def test_bad_input(call, words, told):
    result = call(*words)
    assert isinstance(result.exception, Refusal) and told in str(result.exception)
