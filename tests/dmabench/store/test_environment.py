import json
import subprocess
import sys

import pytest

from dmabench.errors import Refusal
from dmabench.store import environment

GPU = "NVIDIA H100 80GB HBM3, GPU-aaaa, 580.65, 81559\nNVIDIA H100 80GB HBM3, GPU-bbbb, 580.65, [N/A]\n"


@pytest.fixture
def smi(monkeypatch):
    """Answers nvidia-smi queries from a dict {word in the command: output or None}; git is asked for real."""
    answers: dict[str, str | None] = {}
    real = environment._output

    def output(command):
        if command[0] != "nvidia-smi":
            return real(command)
        return next((answer for word, answer in answers.items() if word in command[1]), None)

    monkeypatch.setattr(environment, "_output", output)
    return answers


def test_describe_is_plain_json_without_names_or_paths():
    text = json.dumps(environment.describe())
    assert {"python", "platform", "versions", "git", "gpus", "cpu"} <= set(json.loads(text))
    assert environment.platform.node() not in text or len(environment.platform.node()) < 4
    assert "/home" not in text and "/root" not in text


def test_nothing_here_imports_torch():
    code = "import sys, dmabench.store.environment as e; e.describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_gpus_are_read_and_unknown_numbers_are_none(smi):
    smi["uuid"] = GPU
    first, second = environment.gpus()
    assert first == {"name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-aaaa", "driver": "580.65", "memory_mib": 81559.0}
    assert second["memory_mib"] is None
    assert environment.device_name({"gpus": [first, second]}) == "2 x NVIDIA H100 80GB HBM3"


def test_no_nvidia_smi_means_no_gpus(smi):
    assert environment.gpus() == [] and environment.gpu_state() == []
    assert environment.device_name({"gpus": [], "cpu": {"model": "Some CPU"}}) == "Some CPU"


@pytest.mark.parametrize("field", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_gpu_state_under_the_new_and_the_old_field_name(smi, field):
    smi[field] = "1980, 2619, 41, 350.25, 0x0000000000000004\n"
    (state,) = environment.gpu_state()
    assert state == {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "temperature_c": 41.0,
        "power_w": 350.25,
        "reasons": ["sw_power_cap"],
        "throttled": True,
    }


def test_an_idle_card_is_not_throttled():
    assert environment.clock_reasons("0x0000000000000001") == (["gpu_idle"], False)
    assert environment.clock_reasons("[N/A]") == (None, None)


def test_dmabench_commit_wins(monkeypatch):
    monkeypatch.setenv("DMABENCH_COMMIT", "0123456789-dirty")
    assert environment.git_state() == {"sha": "0123456789", "dirty": True}
    monkeypatch.setenv("DMABENCH_COMMIT", "../../etc")
    with pytest.raises(Refusal, match="not a commit"):
        environment.git_state()


def test_a_package_inside_another_checkout_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.delenv("DMABENCH_COMMIT", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    inside = tmp_path / "venv" / "dmabench" / "store"
    inside.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(inside / "environment.py"))
    assert environment.git_state() == {"sha": None, "dirty": None}


def test_a_checkout_knows_its_commit_and_its_changes(monkeypatch, tmp_path):
    monkeypatch.delenv("DMABENCH_COMMIT", raising=False)
    package = tmp_path / "dmabench" / "store"
    package.mkdir(parents=True)
    (package / "environment.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x", "-c", "core.hooksPath="]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "--no-verify", "--no-gpg-sign", "-m", "one"], check=True)
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    state = environment.git_state()
    assert len(state["sha"]) == 40 and state["dirty"] is False
    (tmp_path / "new.txt").write_text("")
    assert environment.git_state()["dirty"] is True


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cpu", None, "Some CPU"),
        ("cuda", None, "A"),
        ("cuda:1", None, "B"),
        ("cuda", "1", "B"),
        ("cuda:1", "1,0", "A"),
        ("cuda", "GPU-bb", "B"),
        (None, None, "A, B"),
    ],
)
def test_the_name_of_a_torch_device(device, visible, name):
    gpus = [{"name": "A", "uuid": "GPU-aaaa"}, {"name": "B", "uuid": "GPU-bbbb"}]
    machine = {"gpus": gpus, "visible_gpus": visible, "cpu": {"model": "Some CPU"}}
    assert environment.device_name(machine, device) == name


def test_available_memory_is_bytes_of_this_machine_or_unknown(monkeypatch):
    found = environment.available_memory()
    assert found is None or 2**26 < found < 2**50
    monkeypatch.setattr(environment.Path, "read_text", lambda *_: "MemTotal: 5 kB\nMemAvailable:       3 kB\n")
    assert environment.available_memory() == 3072
    monkeypatch.setattr(environment.Path, "read_text", lambda *_: "nothing of the kind\n")
    assert environment.available_memory() is None
