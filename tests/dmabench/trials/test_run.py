"""Running cells: what is stored, what becomes of their folders, what an interruption leaves. No torch: the worker that
dies here speaks as the real one does, and starts at once."""

import sys

import pytest

from dmabench.store.run_folder import append_line, read_rows
from dmabench.store.runs import Run
from dmabench.tasks.task import Cost
from dmabench.timing.worker_process import WorkerProcess
from dmabench.trials.cells import Trial
from dmabench.trials.ranks import Ranks
from dmabench.trials.run import in_worker, rows_of, run_trials

ALONE = Ranks(0, 1, 0)
HOW = {"device": "cpu", "deterministic": False, "compile": False}


def trial(attention="mha", refusal=None, **settings):
    return Trial("toy", {"attention": attention, "lengths": (64, 128), "seed": 0, **settings}, refusal, Cost(0, 0, 0))


@pytest.fixture
def run(tmp_path, environment, monkeypatch):
    monkeypatch.setattr("dmabench.store.runs.environment_module.gpu_state", lambda: [])
    return Run.start(tmp_path, "toy", [], {}, environment)


def start(trials, run, outcomes, keep=False, ranks=ALONE, kept=()):
    """Runs the cells; their outcomes come from a list, an exception among them is raised. Returns what was asked."""
    asked, ended, left = [], [], iter(outcomes)

    def runner(request, told):
        asked.append(request)
        folder = run.path / "cells" / request["folder"].rpartition("/")[2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint").write_text("weights")
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def go():
        told = (lambda _: lambda progress: None), (lambda t, r: ended.extend(r))
        run_trials(trials, run, runner, HOW, "Some GPU", keep, ranks, *told, kept)

    return asked, ended, go


def passed(*rows):
    return {"status": "PASSED", "reason": None, "rows": list(rows)}


def test_each_row_of_a_cell_tells_its_part_and_the_settings(run):
    asked, ended, go = start([trial()], run, [passed({"accuracy": 1.0}, {"accuracy": 0.5})])
    go()
    rows = run.rows()
    assert [(row["part"], row["parts"], row["accuracy"]) for row in rows] == [(1, 2, 1.0), (2, 2, 0.5)]
    for row in rows:
        assert row["task"] == "toy" and row["cell"] == trial().id and row["device"] == "Some GPU"
        assert row["attention"] == "mha" and row["lengths"] == [64, 128] and row["seed"] == 0
        assert row["status"] == "PASSED" and row["reason"] is None and row["run"] == run.name
    assert ended == rows and asked[0]["settings"] == trial().settings and asked[0]["device"] == "cpu"


def test_rows_are_read_in_the_order_that_was_asked_for(run):
    for number in (2, 0, 1):
        for row in rows_of(Trial("toy", {"attention": str(number)}, None, Cost(0, 0, 0), number), passed({}, {}), "d"):
            run.append(row)
    assert [(row["attention"], row["part"]) for row in run.rows()] == [(n, p) for n in "012" for p in (1, 2)]


def test_a_refused_cell_is_unsupported_and_never_runs(run):
    asked, _, go = start([trial(refusal="too small: take --x 2")], run, [])
    go()
    (row,) = run.rows()
    assert not asked and (row["status"], row["reason"]) == ("UNSUPPORTED", "too small: take --x 2")
    assert (row["part"], row["parts"], row["attention"]) == (1, 1, "mha")


def test_what_a_task_keeps_stays_and_its_checkpoint_goes(run):
    trials = [trial(), trial("dma")]
    failed = {"status": "RUNTIME_ERROR", "reason": "no", "rows": []}
    _, _, go = start(trials, run, [passed({}), failed], kept=("model",))
    for one in trials:
        (run.path / "cells" / one.id / "stage1").mkdir(parents=True)
        (run.path / "cells" / one.id / "model").mkdir()
    go()
    assert [path.name for path in (run.path / "cells").iterdir()] == [trials[0].id]
    assert [path.name for path in (run.path / "cells" / trials[0].id).iterdir()] == ["model"]


def test_the_folder_of_a_cell_goes_when_its_rows_are_stored(run):
    _, _, go = start([trial(), trial("dma")], run, [passed({}), {"status": "TIMEOUT", "reason": "slow", "rows": []}])
    go()
    assert [row["status"] for row in run.rows()] == ["PASSED", "TIMEOUT"]
    assert not (run.path / "cells").exists()


def test_models_are_kept_where_asked(run):
    _, _, go = start([trial()], run, [passed({})], keep=True)
    go()
    assert (run.path / "cells" / trial().id / "checkpoint").read_text() == "weights"


def test_an_interrupted_cell_keeps_its_checkpoint_and_has_no_row(run):
    _, _, go = start([trial(), trial("dma"), trial("swa")], run, [passed({}), KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        go()
    assert run.done() == {trial().id}
    assert [path.name for path in (run.path / "cells").iterdir()] == [trial("dma").id]


def test_of_several_processes_one_writes_and_all_end_where_one_fails(run):
    second = Ranks(1, 2, 1)
    starved = {"status": "OUT_OF_MEMORY", "reason": "80 GiB", "rows": []}
    asked, _, go = start([trial(), trial("dma")], run, [passed({}), starved], ranks=second)
    with pytest.raises(SystemExit, match="OUT_OF_MEMORY in process 1: 80 GiB"):
        go()
    assert len(asked) == 2 and run.rows() == []


def test_a_cell_with_missing_parts_is_done_again_and_its_old_parts_are_superseded(run):
    whole, half = trial(), trial("dma")
    for row in rows_of(whole, passed({"n": 1}, {"n": 2}), "d"):
        run.append(row)
    run.append(rows_of(half, passed({"n": 3}, {"n": 4}, {"n": 5}), "d")[0])  # then the power went
    rows, problems = read_rows(run.path)
    assert [row["n"] for row in rows] == [1, 2] and run.done() == {whole.id}
    assert len(problems) == 1 and f"cell {half.id} has 1 of its 3 rows" in problems[0]
    for row in rows_of(half, passed({"n": 6}, {"n": 7}), "d"):
        run.append(row)
    assert [row["n"] for row in run.rows()] == [1, 2, 6, 7] and run.done() == {whole.id, half.id}
    assert read_rows(run.path)[1] == []


def test_rows_without_parts_are_all_kept(run):
    for n in range(2):
        append_line(run.path / "rows.jsonl", {"schema": 1, "cell": "same", "n": n})
    assert [row["n"] for row in run.rows()] == [0, 1]


def test_a_resume_names_the_axis_that_changed(run, environment):
    from dmabench.errors import Refusal

    def settings(*blocks):
        return {"blocks": [{"pairs": "8", "lr": lr} for lr in blocks], "device": "cpu"}

    one = Run.start(run.path.parent, "toy", [], settings("1e-3"), environment)
    with pytest.raises(Refusal, match="setting lr: 1e-3 -> 3e-3\n"):
        Run.resume(one.path, "toy", settings("3e-3"), environment)
    two = Run.start(run.path.parent, "toy", [], settings("1e-3", "2e-3"), environment)
    with pytest.raises(Refusal, match="setting lr of block 2: 2e-3 -> 3e-3\n"):
        Run.resume(two.path, "toy", settings("1e-3", "3e-3"), environment)
    assert Run.resume(two.path, "toy", settings("1e-3", "2e-3"), environment).path == two.path


WORKER = """
import json, os, signal, sys, time
from pathlib import Path

def emit(**message):
    print(json.dumps(message), flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    request = json.loads(line)
    fate, folder = request["settings"]["fate"], Path(request["folder"])
    if fate == "late":
        time.sleep(1.5)
    emit(event="begin")
    if fate == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "hang":
        time.sleep(600)
    try:
        for step in range(600 if fate == "slow" else 3):
            emit(event="progress", stage="train", step=step, steps=3, loss=None, accuracy=None, tokens_per_s=None)
            time.sleep(0.1 if fate == "slow" else 0)
    except KeyboardInterrupt:
        time.sleep(0.3)
        folder.write_text("saved")
        os._exit(130)
    rows = [{"pid": os.getpid()}]
    emit(event="outcome", status="PASSED", reason=None, rows=rows, lost=fate == "broken")
"""


class Watched(WorkerProcess):
    """A cell that is late may be silent for long after its first sign of life: what it takes depends on the machine."""

    def receive(self, least_s=0.0):
        message = super().receive(least_s)
        if self.late:
            self.timeout_s = 60.0
        return message


@pytest.fixture
def ask(tmp_path):
    """A call that runs a cell of this fate in one worker. One that hangs or is late may be silent for a second."""
    with Watched(60.0, tmp_path / "log", (sys.executable, "-c", WORKER)) as worker:
        runner = in_worker(worker)

        def asked(fate, told=lambda progress: None):
            worker.timeout_s, worker.late = 1.0 if fate in ("hang", "late") else 60.0, fate == "late"
            return runner({"settings": {"fate": fate}, "folder": str(tmp_path / "saved")}, told)

        yield asked


@pytest.mark.parametrize(
    ("fate", "status", "reason"),
    [
        ("segv", "RUNTIME_ERROR", "the worker died of SIGSEGV"),
        ("kill", "OUT_OF_MEMORY", "the system killed the worker"),
        ("hang", "TIMEOUT", "no answer for 1 s; raise --cell-timeout"),
    ],
)
def test_a_death_or_silence_costs_one_cell(ask, fate, status, reason):
    before = ask("well")
    outcome = ask(fate)
    assert (outcome["status"], outcome["rows"]) == (status, []) and reason in outcome["reason"]
    after = ask("well")
    assert before["status"] == after["status"] == "PASSED" and before["rows"] != after["rows"]


def test_a_worker_lives_as_long_as_it_can(ask):
    assert ask("well")["rows"] == ask("broken")["rows"] != ask("well")["rows"]


def test_starting_does_not_count_as_silence(ask):
    assert ask("late")["status"] == "PASSED"


def test_progress_is_passed_on(ask):
    told = []
    ask("well", told.append)
    assert [(one.stage, one.step) for one in told] == [("train", step) for step in range(3)]


def test_ctrl_c_waits_until_the_worker_has_saved(ask, tmp_path):
    def told(progress):
        raise KeyboardInterrupt  # it comes while the worker is in its loop

    with pytest.raises(KeyboardInterrupt):
        ask("slow", told)
    assert (tmp_path / "saved").read_text() == "saved"
