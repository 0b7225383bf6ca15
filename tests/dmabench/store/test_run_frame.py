import json
import subprocess
import sys
import warnings

import pytest

import dmabench
from dmabench.errors import Refusal
from dmabench.store import runs
from dmabench.store.run_frame import ABOUT, DamagedRun


@pytest.fixture
def two(stored, environment):
    """The stored run, and one of mqar on another commit, still being written, in a folder below."""
    root, path = stored
    other = {**environment, "git": {"sha": "f" * 40, "dirty": True}}
    run = runs.Run.start(root / "cards" / "one", "mqar", ["mqar"], {}, other)
    run.append({"task": "mqar", "cell": "a", "status": "PASSED", "lengths": [64, 128], "seed": 0})
    return root, path, run


def test_every_row_of_every_run_says_where_it_comes_from(two):
    root, path, run = two
    with pytest.warns(DamagedRun, match=f"{run.name} is still being written, or its process was killed: 1 row so far"):
        frame = dmabench.load_runs(root)
    assert list(frame.columns[: len(ABOUT)]) == list(ABOUT)
    assert len(frame) == 17 and frame.attrs["problems"] == []
    kernels, mqar = frame[frame.run == path.name], frame[frame.run == run.name]
    assert set(kernels.commit) == {"0123456"} and set(kernels.folder) == {"."} and set(kernels.command) == {"kernels"}
    assert set(kernels.device) == {"NVIDIA H100 80GB HBM3"} and set(kernels.versions) == {"torch 2.11.0, triton 3.6.0"}
    assert set(kernels.run_status) == {"finished"} and kernels.total_ms.sum() > 0
    (one,) = mqar.to_dict("records")
    assert (one["commit"], one["folder"], one["run_status"]) == ("fffffff-dirty", "cards/one", "running")
    assert one["lengths"] == [64, 128] and one["device"] == "NVIDIA H100 80GB HBM3"


def test_damaged_rows_are_skipped_counted_and_named(stored):
    _, path = stored
    lines = (path / "rows.jsonl").read_text().splitlines()
    (path / "rows.jsonl").write_text("\n".join(["{", *lines, "17", "x", '{"schema": 1, "cell']))
    with pytest.warns(DamagedRun) as caught:
        frame = dmabench.load_runs(path)
    assert len(frame) == 16 and len(frame.attrs["problems"]) == 4
    (warned,) = caught
    assert "4 of its lines or cells left out" in str(warned.message) and "line 1: damaged" in str(warned.message)
    assert warned.filename == __file__


def test_a_run_of_a_newer_dmabench_is_left_out_with_a_sentence(two):
    root, path, run = two
    with open(path / "rows.jsonl", "a") as file:
        file.write('{"schema": 2}\n')
    run.finish()
    with pytest.warns(DamagedRun, match="is left out: .*line 17, was written by a newer dmabench .*update dmabench"):
        frame = dmabench.load_runs(root)
    assert set(frame.run) == {run.name} and len(frame.attrs["problems"]) == 1


def test_a_sound_finished_run_warns_of_nothing(stored):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(dmabench.load_runs(str(stored[1]))) == 16


def test_a_copy_under_another_name_is_told_apart(stored):
    root, path = stored
    copy = root / "copies" / "mine"
    copy.mkdir(parents=True)
    for file in path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    frame = dmabench.load_runs(root)
    assert set(zip(frame.folder, frame.run, strict=True)) == {(".", path.name), ("copies", "mine")}


def test_nothing_there(tmp_path, monkeypatch):
    with pytest.raises(Refusal, match="there is no folder"):
        dmabench.load_runs(tmp_path / "none")
    monkeypatch.setenv("DMABENCH_RESULTS", str(tmp_path))
    with pytest.warns(DamagedRun, match="no run under"):
        frame = dmabench.load_runs()
    assert list(frame.columns) == list(ABOUT) and len(frame) == 0


def test_it_is_imported_when_it_is_asked_for():
    code = "import sys, dmabench; a = 'pandas' in sys.modules; dmabench.load_runs; print(a, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'load_run'"):
        _ = dmabench.load_run


def test_the_reference_runs_of_the_repository_load():
    from pathlib import Path

    root = Path(__file__).resolve().parents[3] / "results" / "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = dmabench.load_runs(root)
    stored = sum(len(path.read_text().splitlines()) for path in root.rglob("rows.jsonl"))
    assert len(frame) == stored > 300 and json.dumps(sorted(set(frame.folder)))
