import json

import pytest

from dmabench.errors import Refusal
from dmabench.store import runs
from dmabench.store.run_folder import plain
from dmabench.store.run_list import list_runs

HOME = "/" + "home"  # in pieces: no path of a machine stands in the tree


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])


@pytest.fixture
def run(tmp_path, environment):
    return runs.Run.start(tmp_path, "kernels", ["kernels", "--seed", "3"], {"seqlen": [8192], "seed": 3}, environment)


def test_a_run_is_a_folder_that_tells_everything(run):
    assert run.name.endswith("-kernels-0123456")
    stored = run.append({"total_ms": 1.5, "cell": "c1", "seed": 3}, {"gpu_ms": [1.4, 1.6]})
    run.finish()
    assert list(stored)[:5] == ["schema", "run", "cell", "seed", "utc"]
    assert run.rows() == [stored]
    assert run.done() == {"c1"}
    manifest = runs.read_manifest(run.path)
    assert (manifest["status"], manifest["seeds"], manifest["schema"]) == ("finished", [3], 1)
    sample = json.loads((run.path / "samples.jsonl").read_text())
    assert sample["cell"] == "c1" and sample["gpu_ms"] == [1.4, 1.6]


def test_a_second_run_in_the_same_second_gets_a_folder_of_its_own(tmp_path, environment, monkeypatch):
    class Stopped(runs.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2025, 1, 2, 3, 4, 5, tzinfo=zone)

    monkeypatch.setattr(runs, "datetime", Stopped)
    environment = {**environment, "git": {"sha": None, "dirty": None}}
    names = [runs.Run.start(tmp_path, "kernels", [], {}, environment).name for _ in range(3)]
    first = "20250102T030405Z-kernels-nogit"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_nothing_stored_holds_an_absolute_path(tmp_path, environment):
    argv = ["--results", f"{HOME}/some body/results", f"--delta=file:{HOME}/me/delta.npy", "--backend", "dma/*"]
    run = runs.Run.start(tmp_path, "kernels", argv, {"delta": f"file:{HOME}/me/delta.npy"}, environment)
    run.append({"reason": "cannot open /usr/lib/me/x.so: no such file", "cell": "c"}, None)
    assert run.manifest["argv"] == ["--results", "results", "--delta=file:delta.npy", "--backend", "dma/*"]
    text = "".join(path.read_text() for path in run.path.iterdir())
    assert HOME not in text and "/usr" not in text and str(tmp_path) not in text
    assert "cannot open x.so: no such file" in text


def test_not_a_number_becomes_null():
    assert plain({"a": float("nan"), "b": [float("inf"), 1.0]}) == {"a": None, "b": [None, 1.0]}


def test_a_truncated_last_line_is_named_and_spoils_no_later_row(run, environment):
    run.append({"cell": "c1"}, None)
    with open(run.path / "rows.jsonl", "a") as file:
        file.write('{"schema": 1, "cell": "c2", "tot')
    rows, problems = runs.read_rows(run.path)
    assert [row["cell"] for row in rows] == ["c1"]
    assert problems == [f"{run.name}/rows.jsonl, line 2: damaged, skipped"]

    again = runs.Run.resume(run.path, "kernels", {"seqlen": [8192], "seed": 3}, environment)
    again.append({"cell": "c3"}, None)
    assert again.done() == {"c1", "c3"}
    assert len(runs.read_rows(run.path)[1]) == 1


@pytest.mark.parametrize("line", ["not json", "17", '{"cell": "no schema"}', "\x00\x00"])
def test_a_damaged_line_is_skipped_and_counted(run, line):
    run.append({"cell": "c1"}, None)
    with open(run.path / "rows.jsonl", "a") as file:
        file.write(line + "\n")
    run.append({"cell": "c2"}, None)
    rows, problems = runs.read_rows(run.path)
    assert [row["cell"] for row in rows] == ["c1", "c2"]
    assert len(problems) == 1 and "line 2" in problems[0]


def test_a_newer_row_or_manifest_is_refused(run):
    with open(run.path / "rows.jsonl", "a") as file:
        file.write('{"schema": 2}\n')
    with pytest.raises(Refusal, match=r"line 1, was written by a newer dmabench .*update dmabench"):
        runs.read_rows(run.path)
    (run.path / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(Refusal, match="update dmabench"):
        runs.read_rows(run.path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_manifest_is_refused_but_listed(tmp_path, run, content):
    (run.path / "manifest.json").write_text(content)
    with pytest.raises(Refusal, match=r"manifest\.json"):
        runs.read_rows(run.path)
    assert list_runs(tmp_path)[0]["status"].startswith("unreadable")


def test_a_folder_without_manifest_is_no_run(tmp_path):
    with pytest.raises(Refusal, match="is not a run"):
        runs.read_rows(tmp_path)


def test_resume_names_every_difference(run, environment):
    other = {
        **environment,
        "git": {"sha": "f" * 40, "dirty": True},
        "gpus": [{"name": "NVIDIA A100"}],
        "versions": {**environment["versions"], "torch": "2.12.0"},
    }
    with pytest.raises(Refusal) as refusal:
        runs.Run.resume(run.path, "kernels", {"seqlen": [4096], "seed": 3}, other)
    text = str(refusal.value)
    assert "commit: 0123456789abcdef0123456789abcdef01234567 -> " + "f" * 40 in text
    assert "changed files: false -> true" in text
    assert "device: NVIDIA H100 80GB HBM3 -> NVIDIA A100" in text
    assert "version of torch: 2.11.0 -> 2.12.0" in text
    assert "setting seqlen: [8192] -> [4096]" in text
    assert "setting seed" not in text and "triton" not in text
    assert run.manifest["status"] == "running" and run.rows() == []


def test_resume_refused_says_how_the_run_was_started(run, environment):
    with pytest.raises(Refusal) as refusal:
        runs.Run.resume(run.path, "kernels", {"seqlen": [4096], "seed": 3}, environment)
    assert f"started as: dmabench {' '.join(run.manifest['argv'])}" in str(refusal.value)


def test_resume_takes_a_default_that_is_typed_for_the_same(tmp_path, environment):
    def blocks(layers):
        return {"blocks": [{"layers": layers, "fillers": True}], "seeds": [0]}

    run = runs.Run.start(tmp_path, "mqar", ["mqar"], blocks(2), environment)
    assert runs.Run.resume(run.path, "mqar", blocks("2"), environment).path == run.path
    with pytest.raises(Refusal, match="setting layers: 2 -> 3"):
        runs.Run.resume(run.path, "mqar", blocks("3"), environment)


def test_resume_refuses_another_command(run, environment):
    with pytest.raises(Refusal, match="command: kernels -> mqar"):
        runs.Run.resume(run.path, "mqar", {"seqlen": [8192], "seed": 3}, environment)


def test_resume_takes_a_tuple_for_a_stored_list(run, environment):
    again = runs.Run.resume(run.path, "kernels", {"seqlen": (8192,), "seed": 3}, environment)
    again.finish("interrupted")
    assert runs.read_manifest(run.path)["status"] == "interrupted"


def test_results_root_prefers_the_option_then_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DMABENCH_RESULTS", str(tmp_path / "variable"))
    assert runs.results_root(str(tmp_path / "option")) == tmp_path / "option"
    assert runs.results_root(None) == tmp_path / "variable"
    assert (tmp_path / "variable").is_dir()
    monkeypatch.delenv("DMABENCH_RESULTS")
    monkeypatch.chdir(tmp_path)
    assert runs.results_root(None, create=False).name == "results"
    assert not (tmp_path / "results").exists()


def test_results_root_refuses_what_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refusal, match="--results DIR or DMABENCH_RESULTS"):
            runs.results_root(str(folder))


def test_find_run_by_name_path_and_latest(tmp_path, run, environment):
    second = runs.Run.start(tmp_path, "kernels", [], {}, environment)
    assert runs.find_run(tmp_path, run.name) == run.path
    assert runs.find_run(tmp_path / "elsewhere", str(run.path)) == run.path
    assert runs.find_run(tmp_path, "latest") == second.path


def test_runs_are_found_in_folders_of_the_root_but_not_among_the_reference(tmp_path, environment):
    deep = runs.Run.start(tmp_path / "h100" / "kernels", "kernels", [], {}, environment)
    kept = runs.Run.start(tmp_path / "reference" / "h100", "kernels", [], {}, environment)
    (deep.path / "cells" / "saved").mkdir(parents=True)
    (deep.path / "cells" / "saved" / "manifest.json").write_text("{}")
    assert runs.run_paths(tmp_path) == [deep.path]
    assert runs.run_paths(tmp_path / "reference") == [kept.path] == runs.run_paths(kept.path)
    assert runs.find_run(tmp_path, deep.name) == deep.path
    assert runs.run_paths(tmp_path / "none") == []


def test_find_run_offers_the_nearest_name(tmp_path, run):
    with pytest.raises(Refusal, match=f"did you mean {run.name}"):
        runs.find_run(tmp_path, run.name[:-2])


def test_where_no_run_is_the_command_that_makes_one_is_told(tmp_path):
    with pytest.raises(Refusal, match=r"there is no run under .* yet: make one with `dmabench kernels --quick`"):
        runs.find_run(tmp_path / "empty", "latest")
    for name in ("latest", "nope"):
        with pytest.raises(Refusal, match="yet: make one with `dmabench mqar --quick`"):
            runs.find_run(tmp_path / "empty", name, "dmabench mqar --quick")
