"""The command of a task with its real worker, interrupted and resumed, and under torchrun."""

import signal
import sys
import time

import pytest


@pytest.fixture(scope="module")
def installed(toys, tmp_path_factory):
    return toys.install(tmp_path_factory.mktemp("installed"))


def finish(process):
    out, told = process.communicate(timeout=280)
    return process.returncode, out, told


SMALL = ("toy", "--attention", "dma,mha", "--window", 8, "--device", "cpu")


def test_ctrl_c_reaches_the_worker_which_saves_and_a_resume_goes_on_there(toys, installed, tmp_path):
    words = (*SMALL, "--fate", "slow", "--steps", 2000, "--results", tmp_path)
    # A shell that starts us in the background would have made us ignore SIGINT.
    ready = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    running = toys.process(installed, *words, **ready)
    deadline = time.monotonic() + 180
    while not list(tmp_path.glob("*/cells/*/started")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    code, _, told = finish(running)
    rows, manifest = toys.stored(tmp_path)
    assert (code, rows, manifest["status"]) == (130, [], "interrupted"), told
    assert (
        "no cell is finished yet, but the checkpoint of one is kept" in told
        and f"--resume {manifest['run']}" in told
        and "Traceback" not in told
    )
    assert len(list(tmp_path.glob("*/cells/*/checkpoint.json"))) == 1
    code, _, told = finish(toys.process(installed, *words, "--resume", "latest"))
    rows, manifest = toys.stored(tmp_path)
    assert (code, manifest["status"]) == (0, "finished"), told
    assert [row["attention"] for row in rows] == ["dma", "mha"] and 0 < rows[0]["first_step"] < 2000
    assert not list(tmp_path.glob("*/cells"))


def test_ctrl_c_reaches_all_of_several_workers_which_save_and_a_resume_goes_on_there(toys, installed, tmp_path):
    words = ("toy", "--attention", "dma", "--window", "8,16", "--device", "cpu", "--fate", "slow", "--steps", 2000)
    words = (*words, "--results", tmp_path)
    ready = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    running = toys.process(installed, *words, "--jobs", 2, **ready)
    deadline = time.monotonic() + 180
    while len(list(tmp_path.glob("*/cells/*/started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    code, _, told = finish(running)
    rows, manifest = toys.stored(tmp_path)
    assert (code, rows, manifest["status"]) == (130, [], "interrupted"), told
    assert "the checkpoints of 2 are kept" in told and "Traceback" not in told
    code, _, told = finish(toys.process(installed, *words, "--jobs", 2, "--resume", "latest"))
    rows, manifest = toys.stored(tmp_path)
    assert (code, manifest["status"]) == (0, "finished"), told
    assert sorted((row["window"], row["jobs"], row["accuracy"]) for row in rows) == [(8, 2, 0.95), (16, 2, 0.95)]
    assert all(0 < row["first_step"] < 2000 and row["infer_ms"] >= 2 for row in rows)


def test_under_torchrun_one_process_writes_and_prints(toys, installed, tmp_path):
    launcher = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = ("toy", "--attention", "mha", "--steps", 4, "--device", "cpu", "--results", tmp_path, "--json")
    code, out, told = finish(toys.process(installed, *words, launcher=launcher))
    assert code == 0, told
    ((row,), manifest) = toys.stored(tmp_path)
    assert (row["status"], row["processes"], manifest["settings"]["processes"]) == ("PASSED", 2, 2)
    assert len(out.splitlines()) == 1 and told.count("rows and charts") + told.count("rows: ") == 1


def test_under_torchrun_a_refusal_is_said_once(toys, installed, tmp_path, monkeypatch):
    launcher = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = ("toy", "--attention", "dna", "--results", tmp_path / "results")
    # torchrun ends all processes when one has failed: the first, which says why, comes long after the other here.
    late = "import os, time\ntime.sleep(3 if os.environ.get('RANK') == '0' else 0)\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, _, told = finish(toys.process(installed, *words, launcher=launcher))
    assert code != 0 and told.count("did you mean dma?") == 1
