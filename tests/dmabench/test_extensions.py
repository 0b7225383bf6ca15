"""What another package can add without a change here: a backend in ten lines, an attention in two files, a task in one.
Each is run as a user would, and must reach the rows, the table and the report."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from dmabench.report.page import write_report

BACKEND = """
import torch
from dmabench.kernels import Backend
def attend(q, k, v, *, delta, plan, scale):
    groups, at = q.shape[1] // k.shape[1], torch.arange(plan.key_len, device=q.device)
    live = (at <= at[:, None]) & (plan.evict_BGT[:, :, None] > at[:, None])
    k, v, bias = (x.repeat_interleave(groups, 1) for x in (k, v, delta[:, :, None].masked_fill(~live, -torch.inf)))
    scores = q @ k.mT * scale + bias
    return scores.softmax(-1).to(v.dtype) @ v, scores.logsumexp(-1)
BACKEND = Backend(function="dma", name="mine", attend=attend)
"""
OPERATOR = """
import torch

def averaged(v_BHTD, window):
    \"\"\"The mean of the last `window` values.\"\"\"
    sums = torch.nn.functional.pad(v_BHTD.cumsum(2), (0, 0, window, 0))
    count = torch.arange(1, v_BHTD.shape[2] + 1, device=v_BHTD.device).clamp(max=window)
    return (sums[:, :, window:] - sums[:, :, :-window]) / count[:, None]
"""
LAYER = """
from averaging_operator import averaged

from dmabench.tasks.attention.base import GroupedAttention
from dmabench.tasks.cache import Growing

class Averaging(GroupedAttention):
    windowed = True

    def new_state(self, full):
        return Growing()

    def first(self, q, k, v, step, x):
        if step.state is not None:
            step.state.append(k, v)
        return averaged(v, self.config.window).repeat_interleave(q.shape[1] // v.shape[1], dim=1)

    def further(self, q, k, v, step, x):
        _, v = step.state.append(k, v)
        mean = averaged(v, self.config.window)[:, :, -q.shape[2]:]
        return mean.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
"""
ENTRY_POINTS = """
[dmabench.backends]
mine = mine_backend:BACKEND
[dmabench.attentions]
averaging = averaging_layer:Averaging
[dmabench.tasks]
toy = toy_task:TASK
"""


WITHOUT_WORKER = """
import sys
from contextlib import contextmanager
from dmabench.trials import worker as trial_worker
from dmabench.cli import main, tasks_run
from dmabench.trials.run import in_process
sys.argv[1:] = sys.argv[3:]
trial_worker.SAMPLING_S = 0.02
tasks_run._runner = contextmanager(lambda *_: (yield in_process))
main.run()
"""
"""Cells run in the process of the command and are timed briefly: importing all of it twice takes long."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A package with one of each, as pip would leave it."""
    folder = tmp_path_factory.mktemp("installed")
    files = {"mine_backend": BACKEND, "averaging_operator": OPERATOR, "averaging_layer": LAYER}
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    shutil.copy(Path(__file__).parent / "toy_task.py", folder)
    metadata = folder / "additions-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: additions\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def run(toys, installed, results, *words, launcher=()):
    """(rows, what was printed, the report's text) of `dmabench WORDS` in a process that finds the package."""
    process = toys.process(installed, *words, "--results", results, launcher=launcher)
    out, told = process.communicate(timeout=280)
    assert process.returncode == 0, told
    rows, _ = toys.stored(results)
    (path,) = results.iterdir()
    page = write_report([path], results.parent / "report.html").read_text()
    return rows, out, " ".join(re.sub("<[^>]+>", " ", page).split())


def test_a_backend(toys, installed, tmp_path):
    assert len([line for line in BACKEND.splitlines() if line]) <= 10
    words = ("kernels", "--backend", "dma/mine", "--seqlen", "64", "--window", "16", "--cap", "0.05", "--device", "cpu")
    rows, table, page = run(toys, installed, tmp_path / "results", *words)
    (mine,) = [row for row in rows if row["backend"] == "mine"]
    assert mine["status"] == "PASSED" and mine["total_ms"] > 0 and mine["speedup"] > 0
    assert re.search(r"dma/mine +PASSED", table) and re.search(r"dma/mine (\[\d+\] )?PASSED", page)


def test_an_attention(toys, installed, tmp_path):
    words = (
        "mqar",
        "--attention",
        "mha,averaging",
        "--window",
        "4,8",
        "--pairs",
        "2",
        "--seqlen",
        "32",
        "--vocab",
        "64",
    )
    small = (
        "--d-model",
        "8",
        "--steps",
        "2",
        "--batch",
        "2",
        "--test-examples",
        "4",
        "--lr",
        "1e-3",
        "--device",
        "cpu",
    )
    launcher = (sys.executable, "-P", "-c", WITHOUT_WORKER)
    rows, table, page = run(toys, installed, tmp_path / "results", *words, *small, launcher=launcher)
    told = {(row["attention"], row["window"]): row for row in rows}
    assert set(told) == {("mha", None), ("averaging", 4), ("averaging", 8)}
    assert all(row["status"] == "PASSED" for row in rows)
    mine, dense = told["averaging", 4], told["mha", None]
    assert mine["sparsity_active"] and mine["density"] < dense["density"] == 1  # four keys of at most 32
    assert mine["density"] == pytest.approx((4 * 5 / 2 + 28 * 4) / (32 * 33 / 2))
    assert re.search(r"averaging +4 ", table) and "averaging" in page


def test_a_task(toys, installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    rows, table, page = run(toys, installed, tmp_path / "results", "toy", "--steps", "2", "--window", "4")
    assert {row["attention"] for row in rows} == {"mha", "dma"} and all(row["accuracy"] == 0.95 for row in rows)
    assert "Learn nothing, quickly." in table and "Learn nothing, quickly." in page and "0.950" in page
