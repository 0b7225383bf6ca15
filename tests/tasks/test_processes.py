"""One process and two (gloo, started as torchrun does) train alike, with DDP and with FSDP2; both resume to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmabench.tasks.processes import deterministic

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What two_processes.py wrote: losses and weights, of one process and of each of two."""
    out = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "two_processes.py", out], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(
        curve=json.loads((out / "alone.json").read_text()),
        weights=torch.load(out / "alone.pt"),
        ranks=[json.loads((out / f"{rank}.json").read_text()) for rank in range(2)],
        load=lambda case, rank: torch.load(out / f"{case}-{rank}.pt"),
    )


@pytest.mark.parametrize("case", ["plain", "accumulated", "sharded"])
def test_two_processes_train_as_one_does(trained: SimpleNamespace, case: str) -> None:
    first, second = trained.ranks
    assert first["world"] == second["world"] == 2
    assert first[case] == second[case] == pytest.approx(trained.curve, rel=1e-5)
    assert trained.curve[-1] < trained.curve[0] - 0.1
    weights = [trained.load(case, rank) for rank in range(2)]
    assert weights[0].keys() == trained.weights.keys()
    for name, expected in trained.weights.items():
        assert torch.equal(weights[0][name], weights[1][name])
        # Adam divides by the size of a gradient, so that rounding shows where it is near 0: 1% of a step of lr 0.01.
        torch.testing.assert_close(weights[0][name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["plain", "accumulated", "sharded"])
def test_a_signal_to_one_process_stops_both_and_both_resume(trained: SimpleNamespace, case: str) -> None:
    for rank in trained.ranks:
        assert rank[f"{case}-stopped"]
        assert rank[f"{case}-again"] == rank[case]
        assert rank[f"{case}-equal"]


def test_determinism_is_asked_for_and_put_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="inside"), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("inside")
    assert not torch.are_deterministic_algorithms_enabled()
