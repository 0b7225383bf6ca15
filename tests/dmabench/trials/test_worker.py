"""What the worker does with one cell, and how it times and tells."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from dmabench.tasks.task import Progress
from dmabench.timing import clock, rounds
from dmabench.trials import worker as trial_worker
from dmabench.trials.worker import attempt, make_tools, rarely, timer


@pytest.fixture
def task(monkeypatch):
    """A call that makes `registry.get` return a task whose run is the given function."""

    def install(run):
        made = type("Made", (), {"run": staticmethod(run)})
        monkeypatch.setattr(trial_worker.registry, "get", lambda name: made)

    return install


@pytest.fixture
def tools(tmp_path):
    request = {"folder": tmp_path / "cells" / "one", "device": "cpu", "deterministic": False, "compile": True}
    return make_tools(request, lambda progress: None)


def raises(error):
    def run(settings, tools):
        raise error

    return run


def test_rows_come_back_as_json_can_hold_them(task, tools):
    task(lambda settings, tools: [{"accuracy": torch.tensor(0.5), "loss": float("nan"), "settings": settings["n"]}])
    outcome = attempt("made", {"n": 3}, tools)
    assert outcome == {
        "status": "PASSED",
        "reason": None,
        "rows": [{"accuracy": 0.5, "loss": None, "settings": 3}],
        "lost": False,
    }


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError("needs 10 TiB"), "OUT_OF_MEMORY", "needs 10 TiB"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OUT_OF_MEMORY", "CUDA out of memory"),
        (ValueError("no such luck"), "RUNTIME_ERROR", "ValueError: no such luck"),
    ],
)
def test_what_a_cell_raises_is_its_status(task, tools, error, status, reason):
    task(raises(error))
    assert attempt("made", {}, tools) == {"status": status, "reason": reason, "rows": [], "lost": False}


def test_a_ctrl_c_is_no_outcome(task, tools):
    task(raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        attempt("made", {}, tools)


def test_a_task_without_rows_is_a_bug_of_it(task, tools):
    task(lambda settings, tools: [])
    assert attempt("made", {}, tools)["reason"] == "RuntimeError: the task made returned no row"


def test_tools_are_what_was_asked_for(tools, tmp_path):
    assert (tools.device, tools.deterministic, tools.compile) == ("cpu", False, True)
    assert tools.folder == tmp_path / "cells" / "one" and tools.folder.is_dir()


def test_a_call_is_timed(monkeypatch):
    """On a clock that only the call moves."""
    now, calls = [0.0], []
    for module in (clock, rounds):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call():
        calls.append(1)
        now[0] += 0.004 if len(calls) % 3 else 0.005

    assert timer("cpu")(call) == pytest.approx(4.0) and len(calls) > 5
    assert now[0] < 2 * trial_worker.SAMPLING_S


def test_what_a_timed_call_raises_is_not_swallowed():
    def call():
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        timer("cpu")(call)


def test_progress_is_told_at_each_stage_and_rarely_within_one(monkeypatch):
    monkeypatch.setattr(trial_worker, "time", SimpleNamespace(monotonic=count(100.0, 2**-10).__next__))
    told = []
    tell = rarely(told.append)
    for stage in ("train", "score"):
        for step in range(1000):
            tell(Progress(stage, step, 1000))
    assert [(one.stage, one.step) for one in told] == [(stage, step) for stage in ("train", "score") for step in STEPS]


STEPS = (0, 256, 512, 768)  # a quarter of a second apart, where a step takes 1/1024
