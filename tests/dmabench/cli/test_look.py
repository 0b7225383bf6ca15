import json

import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import doctor, env, listing, report
from dmabench.errors import Refusal

STATE = {"memory_mhz": 2619.0, "temperature_c": 40.0, "power_w": 700.0, "reasons": ["sw_power_cap"]}


@pytest.fixture
def call():
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    for command in (report, listing, doctor, env):
        command.add_to(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("command", ["report", "list", "doctor", "env"])
def test_help_has_three_examples(call, command):
    result = call(command, "--help")
    assert result.exit_code == 0 and result.stdout.count(f"dmabench {command}") >= 3


def test_report_prints_the_path_of_the_page(call, stored):
    root, path = stored
    result = call("report", "--results", root)
    assert result.exit_code == 0 and result.stdout.strip() == str(root / "report.html")
    assert path.name in (root / "report.html").read_text()


def test_report_of_named_runs_as_json(call, stored, tmp_path):
    root, path = stored
    result = call("report", "latest", path.name, "--results", root, "--out", tmp_path / "page.html", "--json")
    told = json.loads(result.stdout)
    assert told["report"] == str(tmp_path / "page.html") and told["runs"] == [path.name] * 2
    assert {"claim", "verdict"} <= set(told["verdicts"][0])


def test_report_without_runs_says_so_and_writes_the_page(call, tmp_path):
    result = call("report", "--results", tmp_path / "none")
    assert result.exit_code == 0 and "No run under" in result.stderr
    assert "dmabench kernels --quick" in (tmp_path / "none" / "report.html").read_text()


def test_an_unknown_run_offers_the_nearest(call, stored):
    root, path = stored
    result = call("report", path.name + "x", "--results", root)
    assert isinstance(result.exception, Refusal) and f"did you mean {path.name}" in str(result.exception)


def test_list_runs(call, stored, tmp_path):
    root, path = stored
    assert path.name in call("list", "runs", "--results", root).stdout
    (listed,) = json.loads(call("list", "runs", "--results", root, "--json").stdout)
    assert listed == {
        "name": path.name,
        "folder": ".",
        "command": "kernels",
        "started": listed["started"],
        "commit": "0123456",
        "device": "NVIDIA H100 80GB HBM3",
        "status": "finished",
        "damaged": 0,
        "rows": 16,
        "statuses": {"PASSED": 13, "OUT_OF_MEMORY": 2, "UNSUPPORTED": 1},
    }
    empty = call("list", "runs", "--results", tmp_path / "none", "--json")
    assert json.loads(empty.stdout) == [] and "--quick" in empty.stderr
    assert not (tmp_path / "none").exists()


def test_list_runs_names_folders_what_is_damaged_and_what_cannot_be_read(call, stored, monkeypatch):
    root, path = stored
    with open(path / "rows.jsonl", "a") as file:
        file.write("{")
    newer = root / "other" / "20250101T000000Z-mqar-nogit"
    newer.mkdir(parents=True)
    (newer / "manifest.json").write_text('{"schema": 99}')
    assert max(map(len, call("list", "runs", "--results", root).stdout.splitlines())) <= 100
    monkeypatch.setenv("COLUMNS", "150")
    result = call("list", "runs", "--results", root)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "other/" in lines and f"{newer.name} unreadable" in lines
    (line,) = (line for line in lines if line.startswith(path.name))
    assert "finished, 1 damaged" in line and "13 PASSED, 2 OUT_OF_MEMORY" in line
    assert "written by a newer dmabench" in result.stderr


def test_env_is_what_a_manifest_records(call, monkeypatch, environment):
    monkeypatch.setattr(env.environment, "describe", lambda more: environment)
    monkeypatch.setattr(env.environment, "gpu_state", lambda: [{"sm_mhz": 1980.0, "throttled": True, **STATE}])
    monkeypatch.setenv("DMABENCH_RESULTS", "/" + "home/somebody/results")
    found = json.loads(call("env", "--json").stdout)
    assert {name: found[name] for name in environment} == environment
    assert found["device"] == "NVIDIA H100 80GB HBM3" and found["variables"]["DMABENCH_RESULTS"] == "results"
    lines = dict(line.split("  ", 1) for line in call("env").stdout.splitlines())
    assert lines["commit"].strip() == environment["git"]["sha"] and "slowed down" in lines["GPU 0 now"]
    assert "81559 MiB, driver 580.1" in lines["GPU 0"]


def test_list_claims_presets_and_tasks(call):
    claims = json.loads(call("list", "claims", "--json").stdout)
    assert "kernel-cuda-10x-most-dense" in [one["claim"] for one in claims]
    assert "paper" in [one["preset"] for one in json.loads(call("list", "presets", "--json").stdout)]
    tasks = json.loads(call("list", "tasks", "--json").stdout)
    assert {"mqar", "needle", "patterns"} <= {one["task"] for one in tasks}


def test_presets_are_shown_as_they_are_typed_without_defaults(call):
    shown = call("list", "presets").stdout
    assert "--pairs" in shown
    assert "--fillers yes" not in " ".join(shown.split())  # --fillers is a switch, and on by default
    assert "--power" not in shown
    listed = json.loads(call("list", "presets", "--json").stdout)
    quick = next(one for one in listed if (one["command"], one["preset"]) == ("mqar", "quick"))
    assert quick["blocks"][0]["power"] == "0.01"


def test_list_of_something_else_is_a_usage_error(call):
    assert call("list", "planets").exit_code == 2


def test_list_backends_says_why_one_cannot_run(call):
    found = {one["backend"]: one for one in json.loads(call("list", "backends", "--device", "cpu", "--json").stdout)}
    assert found["dma/reference"]["unavailable"] is None
    assert "CUDA" in found["dense/sdpa-cudnn"]["unavailable"]


@pytest.fixture
def probes(monkeypatch):
    """Answers of doctor's three subprocesses, instead of importing torch in each."""
    answers = {
        doctor.TORCH: (["2.15.0", False, None, False], ""),
        doctor.TRITON: (["3.9.0"], ""),
        doctor.BACKENDS: (
            [
                {"backend": "dma/flex", "unavailable": None, "device": "cpu", "passes": ["fwd"]},
                {"backend": "dma/cuda", "unavailable": "not built yet", "device": "cpu", "passes": ["fwd"]},
            ],
            "",
        ),
    }
    monkeypatch.setattr(doctor, "_probe", lambda code: answers[code])
    monkeypatch.setattr(doctor.environment, "gpus", lambda: [])
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.delenv("CXX", raising=False)
    return answers


def checks(result):
    return {check["name"]: check for check in json.loads(result.stdout)}


def test_doctor_is_content_with_a_cpu(call, probes, tmp_path):
    result = call("doctor", "--results", tmp_path, "--json")
    assert result.exit_code == 0, result.stdout
    found = checks(result)
    assert not found["CUDA"]["ok"] and not found["CUDA"]["required"]
    assert found["dma/cuda"]["found"] == "not built yet" and found["backends"]["found"] == "1 of 2 can run here"
    text = call("doctor", "--results", tmp_path)
    assert text.exit_code == 0 and "Everything required works." in text.stderr


def test_doctor_says_what_to_do_about_each_failure(call, probes, tmp_path, monkeypatch):
    probes[doctor.TORCH] = (None, "ImportError: libcudart is missing")
    probes[doctor.BACKENDS] = (None, "ImportError: no torch")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (tmp_path / "file").write_text("")
    result = call("doctor", "--results", tmp_path / "file", "--json")
    failed = {name for name, check in checks(result).items() if check["required"] and not check["ok"]}
    assert result.exit_code == 1 and failed == {"torch", "C++ compiler", "results folder", "backends"}
    assert all(check["fix"] for check in checks(result).values() if not check["ok"])
    assert "libcudart is missing" in call("doctor", "--results", tmp_path / "file").stdout


def test_doctor_refuses_an_old_torch_and_a_compiler_that_is_not_there(call, probes, tmp_path, monkeypatch):
    probes[doctor.TORCH] = (["2.9.1", False, None, False], "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name == "g++" else None)
    found = checks(call("doctor", "--results", tmp_path, "--json"))
    assert not found["torch"]["ok"] and not found["C++ compiler"]["ok"]


def test_a_probe_reports_the_last_line_of_a_crash():
    assert doctor._probe("import json; print('noise'); print(json.dumps([1]))") == ([1], "")
    assert doctor._probe("raise ValueError('why')") == (None, "ValueError: why")
    assert doctor._probe("print('no json')")[0] is None
