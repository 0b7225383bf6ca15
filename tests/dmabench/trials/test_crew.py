"""Several workers at once. No torch: workers that speak as the real ones do, and start at once."""

import os
import signal
import sys
import threading
import time

import pytest

from dmabench.store.runs import Run
from dmabench.tasks.task import Cost
from dmabench.trials.cells import Trial
from dmabench.trials.crew import Crew
from dmabench.trials.ranks import Ranks
from dmabench.trials.run import run_trials

HOW = {"device": "cpu", "deterministic": False, "compile": False}
WORKER = """
import json, os, signal, sys, time
from pathlib import Path

def emit(**message):
    print(json.dumps(message), flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    request = json.loads(line)
    fate, folder, turnstile = request["settings"]["fate"], Path(request["folder"]), Path(request["turnstile"])
    folder.mkdir(parents=True, exist_ok=True)
    emit(event="begin")
    try:
        if fate in ("meets", "slow"):
            (turnstile / str(os.getpid())).touch()
            while len(list(turnstile.iterdir())) < 2:
                time.sleep(0.01)
        if fate == "slow":
            (folder / "started").touch()
            time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(0.3)
        (folder / "checkpoint").write_text("saved")
        os._exit(130)
    emit(event="alive")
    if fate == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    threads = os.environ["OMP_NUM_THREADS"]
    if fate == "starves" and not (folder / "starved").exists():
        (folder / "starved").touch()
        emit(event="outcome", status="OUT_OF_MEMORY", reason="80 GiB", rows=[], lost=False)
    else:
        emit(event="outcome", status="PASSED", reason=None, rows=[{"threads": threads}], lost=False)
"""


def trial(fate, seed=0, refusal=None):
    return Trial("toy", {"attention": "mha", "fate": fate, "seed": seed}, refusal, Cost(0, 0, 0))


@pytest.fixture
def run(tmp_path, environment, monkeypatch):
    monkeypatch.setattr("dmabench.store.runs.environment_module.gpu_state", lambda: [])
    return Run.start(tmp_path, "toy", [], {}, environment)


def go(trials, run, jobs=2, ended=lambda trial, rows: None):
    with Crew(jobs, 120.0, run.path / "log", (sys.executable, "-c", WORKER), {}) as crew:
        run_trials(trials, run, crew, HOW, "Some GPU", False, Ranks(0, 1, 0), lambda t: lambda p: None, ended)
    return run.rows()


def fates(rows):
    return {(row["fate"], row["seed"]): row["status"] for row in rows}


def test_two_cells_run_at_once_and_say_so(run):
    rows = go([trial("meets", seed) for seed in range(2)], run)  # each waits until the other is there
    assert [row["jobs"] for row in rows] == [2, 2] and len(rows) == 2
    assert not (run.path / "cells").exists()


def test_a_dying_cell_costs_one(run):
    rows = go([trial("segv"), *(trial("well", seed) for seed in range(3)), trial("no", refusal="too small")], run)
    assert fates(rows) == {
        ("segv", 0): "RUNTIME_ERROR",
        **{("well", seed): "PASSED" for seed in range(3)},
        ("no", 0): "UNSUPPORTED",
    }


def test_what_ran_out_of_shared_memory_is_run_again_alone(run):
    rows = go([trial("starves"), trial("well"), trial("well", 1)], run)
    assert set(fates(rows).values()) == {"PASSED"} and len(rows) == 3
    assert (rows[-1]["fate"], rows[-1]["jobs"]) == ("starves", 1) and {row["jobs"] for row in rows[:-1]} == {2}


def test_cores_are_divided(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dmabench.trials.crew.cpu_cores", lambda: 7)
    assert {row["threads"] for row in go([trial("well"), trial("well", 1)], run)} == {"3"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert {row["threads"] for row in go([trial("well", 2), trial("well", 3)], run)} >= {"5"}


def press_ctrl_c_when(met):
    """SIGINT to this process, as a terminal sends it, once `met()`."""

    def press():
        deadline = time.monotonic() + 90
        while not met() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


@pytest.fixture
def ctrl_c():
    """Heard, also where the shell that started the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_until_all_have_saved(run, ctrl_c):
    ended = []
    press_ctrl_c_when(lambda: len(list(run.path.glob("cells/*/started"))) == 2 and ended)
    with pytest.raises(KeyboardInterrupt):
        go([trial("well"), *(trial("slow", seed) for seed in range(4))], run, ended=lambda trial, rows: ended.append(1))
    assert fates(run.rows()) == {("well", 0): "PASSED"}
    assert len(list(run.path.glob("cells/*/checkpoint"))) == 2


def test_a_row_that_cannot_be_stored_ends_all_once_they_have_saved(run):
    def full(trial, rows):
        while len(list(run.path.glob("cells/*/started"))) < 1:
            time.sleep(0.01)
        raise OSError("no space left")

    trials = [trial("well"), trial("slow"), trial("slow", 1)]
    (run.path / "cells").mkdir()
    with pytest.raises(OSError, match="no space"):
        go(trials, run, ended=full)
    assert len(list(run.path.glob("cells/*/checkpoint"))) == 2
