"""What the worker finds out about a cell before it is timed."""

import subprocess
import sys

import pytest

from dmabench.timing import worker
from dmabench.workload.cells import Cell, Shape


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_nothing_of_an_earlier_call_is_held_when_memory_is_measured(monkeypatch, pass_):
    """Peak memory is counted from what is allocated at the start: a forward held until then would be left out."""
    held = []
    monkeypatch.setattr(worker, "_peak_mib", lambda subject, inputs: held.append(subject._state))
    shape = Shape(pass_, "kernel", 64, 1, 2, 1, 16, "fp32", 0, "cpu")
    rows = []
    worker.measure([Cell("dma", "reference", shape, 16, "iid")], {"cap_s": 0.01}, rows.append)
    assert [m["row"]["status"] for m in rows if m["event"] == "row"] == ["PASSED"]
    assert held == [None]


def test_a_worker_starts_without_dynamo():
    code = "import sys, dmabench.timing.worker; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=280)
