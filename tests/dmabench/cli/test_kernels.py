import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from dmabench.cli import kernels_input
from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.kernels.dma_cuda import hopper

TINY = ["--window", "16", "--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--device", "cpu"]
FAST = [*TINY, "--cap", "0.05", "--backend", "dma/reference,sdpa-math"]
HALF = '{"schema": 1, "cel'


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two test workers with two threads each wait for one another: a call of 0.1 ms takes 40. And a run is resumed
    although somebody commits meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("DMABENCH_COMMIT", "0123456")
        yield


def call(*words):
    return CliRunner().invoke(app, ["kernels", *[str(word) for word in words]])


def process(*words, program=("-m", "dmabench"), **options):
    """The console script's own entry point, in a process of its own, where no test's folder is importable."""
    command = [sys.executable, "-P", *program, "kernels", *[str(word) for word in words]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def stored(root):
    """The rows of the only run under root, and its manifest."""
    (path,) = root.iterdir()
    rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines() if line != HALF]
    return rows, json.loads((path / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backend", "dma/flx"], "did you mean dma/flex?"),
        (["--backend", ""], "matches no backend"),
        (["--seqlen", "0"], "--seqlen 0: 0 is too small; the least is 1"),
        (["--seqlen", "4k:1k:x2"], "swap the two"),
        (["--seqlen", "9" * 20], "is too large"),
        (["--heads", "6", "--kv-heads", "4"], "--kv-heads may be 1, 2, 3, 6"),
        (["--head-dim", "8"], "outside 16..256"),
        (["--window", "0"], "--window 0"),
        (["--dtype", "fp8"], "choose from fp32, fp16, bf16"),
        (["--delta", "isd"], "did you mean iid?"),
        (["--delta", "file:missing.npy"], "give a .npy file"),
        (["--device", "tpu"], "write cpu, cuda"),
        (["--device", "cuda:99"], "use --device cpu"),
        (["--preset", "h10"], "did you mean h100?"),
        (["--quick", "--preset", "paper"], "leave one of them out"),
        (["--replay", "--device", "cpu"], "--replay times CUDA graphs, and this run is on a CPU"),
        (["--cap", "0"], "--cap 0: write a number of seconds above 0"),
        (["--cap", "nan"], "--cap nan"),
        (["--cell-timeout", "-1"], "--cell-timeout -1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(words, told, tmp_path):
    result = call(*words, "--results", tmp_path / "results")
    assert isinstance(result.exception, Refusal) and told in str(result.exception)
    assert result.stdout == "" and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("on", "setting"), [({"dkdv", "forward"}, "forward,dkdv"), ({"forward", "dq", "dkdv"}, None), (set(), "none")]
)
def test_a_run_says_which_kernels_served_hopper(on, setting, monkeypatch):
    monkeypatch.setattr(hopper, "ON", on)
    assert kernels_input.switched().get("hopper") == setting
    monkeypatch.setattr(hopper, "ON", on | {"dk"})
    with pytest.raises(Refusal, match="DMABENCH_HOPPER names 'dk'; choose from"):
        kernels_input.switched()


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.array([[1.0, np.nan] * 32]), "32 NaN or infinite"),
        (np.ones((1, 10)), "--seqlen to what the file holds"),
        (np.ones((3, 64)), "--kv-heads"),
        (np.array([["a"] * 64]), "holds no real numbers"),
    ],
)
def test_a_delta_that_cannot_be_used_is_refused_before_anything_runs(array, told, tmp_path):
    np.save(tmp_path / "x.npy", array)
    result = call(*FAST, "--seqlen", 64, "--delta", f"file:{tmp_path / 'x.npy'}", "--results", tmp_path / "results")
    assert isinstance(result.exception, Refusal) and told in str(result.exception)
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = call(*FAST, "--seqlen", 64, "--results", tmp_path / "file")
    assert isinstance(result.exception, Refusal) and "it is a file" in str(result.exception)


def test_resume_names_the_nearest_run_or_says_there_is_none(tmp_path):
    result = call(*FAST, "--seqlen", 64, "--results", tmp_path, "--resume", "nope")
    assert isinstance(result.exception, Refusal) and "there is no run 'nope'" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_lists_every_cell_and_leaves_nothing(tmp_path):
    words = ("--seqlen", "1k,2k", "--window", "64", "--pass", "fwd,bwd", "--backend", "dma/flex,dense/sdpa-math")
    result = call(*words, "--device", "cpu", "--dry-run", "--results", tmp_path / "results")
    assert result.exit_code == 0 and "8 cells in 4 shapes" in result.stdout
    assert "dma/flex" in result.stdout and not (tmp_path / "results").exists()
    told = call(*words, "--device", "cpu", "--dry-run", "--json").stdout.splitlines()
    cells = [json.loads(line) for line in told]
    assert len({cell["cell"] for cell in cells}) == 8 and {cell["seqlen"] for cell in cells} == {1024, 2048}


def test_help_has_three_examples_on_lines_of_their_own():
    result = CliRunner().invoke(app, ["kernels", "--help"], env={"COLUMNS": "80"})
    lines = [line.strip() for line in result.stdout.splitlines()]
    examples = [line for line in lines if line.startswith("dmabench kernels ")]
    assert result.exit_code == 0 and len(examples) == 3
    for example in examples:
        ran = CliRunner().invoke(app, [*example.replace("'", "").split()[1:], "--dry-run"])
        assert ran.exit_code == 0, example


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder with one finished run, the words that made it, and what was printed then."""
    root = tmp_path_factory.mktemp("results")
    words = [*FAST, "--seqlen", "64", "--results", root]
    return root, words, call(*words)


def test_rows_are_stored_shown_and_drawn(finished):
    root, _, result = finished
    assert result.exit_code == 0, result.output
    assert "dma/reference" in result.stdout and "dense/sdpa-math" in result.stdout and "Traceback" not in result.stderr
    rows, manifest = stored(root)
    assert [row["status"] for row in rows] == ["PASSED"] * 2 and manifest["status"] == "finished"
    assert all(row["speedup"] is not None for row in rows)
    assert len(list(root.glob("*/*.png"))) == 2 and "rows, samples and charts" in result.stderr


def test_a_whole_run_resumed_measures_nothing_and_prints_its_rows(finished):
    root, words, _ = finished
    before = stored(root)[0]
    result = call(*words, "--resume", "latest", "--json")
    assert result.exit_code == 0 and stored(root)[0] == before
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["total_ms"] for row in told] == [row["total_ms"] for row in before]


def test_a_newer_run_is_not_resumed(finished, tmp_path):
    root, words, _ = finished
    shutil.copytree(root, tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob("*/manifest.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 99}))
    result = call(*[tmp_path / "copy" if word is root else word for word in words], "--resume", "latest")
    assert isinstance(result.exception, Refusal) and "update dmabench" in str(result.exception)


def test_a_reader_that_hangs_up_changes_nothing(finished):
    root, words, _ = finished
    for chart in root.glob("*/*.png"):
        chart.unlink()
    running = process(*words, "--resume", "latest", "--json", env={**os.environ, "NO_COLOR": "1"})
    running.stdout.close()
    told = running.stderr.read()
    assert running.wait(timeout=280) == 0 and "Traceback" not in told and "Broken" not in told, told
    assert "\x1b" not in told and len(list(root.glob("*/*.png"))) == 2


def test_json_alone_goes_to_stdout_and_nothing_that_ran_is_3(tmp_path):
    words = (*TINY, "--seqlen", "64", "--backend", "dma/reference", "--no-dense", "--pass", "decode", "--json")
    result = call(*words, "--results", tmp_path)
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert row["status"] == "UNSUPPORTED" and row["reason"] and row["total_ms"] is None
    assert result.exit_code == 3 and "Nothing could be measured" in result.stderr


def test_a_decoding_run_tells_caches_and_compares_with_dense(tmp_path):
    words = ("--window", 16, "--heads", 2, "--kv-heads", 1, "--head-dim", 16, "--device", "cpu", "--cap", 0.02)
    result = call(
        *words, "--pass", "decode", "--level", "kernel,layer", "--seqlen", 100, "--json", "--results", tmp_path
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and {row["level"] for row in rows} == {"kernel", "layer"}
    assert {row["function"] for row in rows} == {"dma", "dense", "swa", "mla", "nsa"}
    assert {row["status"] for row in rows} == {"PASSED"} and all(row["speedup"] and row["cache_mib"] for row in rows)
    assert [row["window"] for row in rows if row["function"] == "nsa"] == [16, None] * 2
    run = next(tmp_path.iterdir())
    assert {path.name.split("-h2")[0] for path in run.glob("*.png")} == {
        f"{kind}{level}-decode" for kind in ("latency", "speedup") for level in ("", "-layer")
    }
    shown = call(*words, "--pass", "decode", "--seqlen", 100, "--results", tmp_path / "again").stdout
    assert "cache MiB" in shown and "nsa/reference*" in shown and "* the paper's settings" in shown


def test_backends_follow_the_pass_and_the_level_where_none_are_named(tmp_path):
    told = call("--pass", "fwd,decode", "--level", "kernel,layer", "--device", "cpu", "--dry-run", "--json").stdout
    found = {}
    for cell in map(json.loads, told.splitlines()):
        found.setdefault((cell["level"], cell["pass"]), set()).add(f"{cell['function']}/{cell['backend']}")
    assert "dma/live-keys" in found["kernel", "decode"] and "dma/reference" not in found["kernel", "decode"]
    assert "dma/flex" in found["kernel", "fwd"] and "dma/flex" not in found["layer", "fwd"]
    assert "mla/absorbed" in found["layer", "decode"] and "mla/expanded" in found["layer", "fwd"]
    named = call(
        "--pass", "fwd,decode", "--backend", "dma/flex", "--no-dense", "--device", "cpu", "--dry-run", "--json"
    )
    assert {json.loads(line)["backend"] for line in named.stdout.splitlines()} == {"flex"}


NO_END = """
import time
from dmabench.cli.main import run
from dmabench.timing.isolation import Worker

measure = Worker.measure
def up_to_the_third(self, cells, *more):
    if cells[0].shape.seqlen == 128:
        time.sleep(600)
    yield from measure(self, cells, *more)

Worker.measure = up_to_the_third
run()
"""
"""The command, which waits for the Ctrl-C before the third of its cells: a busy machine must not press it too late."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that got a Ctrl-C after its first row: its folder, the words, the exit code, stderr, and what it kept."""
    root = tmp_path_factory.mktemp("interrupted")
    lengths = ["--seqlen", "64,96,128,160,192,224"]
    words = [*TINY, "--backend", "sdpa-math", *lengths, "--cap", "0.3", "--results", root]
    # A shell that starts us in the background would have made us ignore SIGINT.
    ready = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    running = process(*words, program=("-c", NO_END), **ready)
    deadline = time.monotonic() + 180
    while not any(file.stat().st_size for file in root.glob("*/rows.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=280)
    return root, words, running.returncode, told, *stored(root)


def test_ctrl_c_keeps_the_rows_and_says_how_to_go_on(interrupted):
    _, _, code, told, kept, manifest = interrupted
    assert code == 130 and "Traceback" not in told, told
    assert 0 < len(kept) < 6 and manifest["status"] == "interrupted"
    assert f"{len(kept)} of 6 cells are stored" in told and f"--resume {manifest['run']}" in told


def test_resume_measures_only_the_rest_even_after_half_a_line(interrupted):
    root, words, _, _, kept, _ = interrupted
    (file,) = root.glob("*/rows.jsonl")
    file.write_text(file.read_text() + HALF)  # what a crash in the middle of writing leaves
    again = call(*words, "--resume", "latest", "--json")
    assert again.exit_code == 0, again.output
    rows, manifest = stored(root)
    assert rows[: len(kept)] == kept and manifest["status"] == "finished"
    asked = [json.loads(line)["cell"] for line in call(*words, "--dry-run", "--json").stdout.splitlines()]
    assert sorted(row["cell"] for row in rows) == sorted(asked) and len(set(asked)) == 6
    assert [json.loads(line)["cell"] for line in again.stdout.splitlines()] == asked


def test_resume_refuses_other_settings_and_names_them(interrupted):
    _, words, *_ = interrupted
    other = call(*words, "--resume", "latest", "--seed", "1")
    assert isinstance(other.exception, Refusal) and "setting seed: 0 -> 1" in str(other.exception)


def test_a_refusal_is_one_line_on_stderr_and_2():
    running = process("--seqlen", "0")
    out, told = running.communicate(timeout=280)
    assert (running.returncode, out) == (2, "")
    assert told.startswith("dmabench: --seqlen 0") and told.count("\n") == 1
