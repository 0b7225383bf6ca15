"""The table that "auto" chooses by: what makes a cell, and that the committed table is that of the committed rows."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from dmabench.kernels import Problem, choice, measured
from dmabench.store.run_folder import read_rows
from dmabench.store.runs import run_paths
from dmabench.summaries import fastest

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "results" / "reference"


def a_row(backend, total, **changes):
    row = {"function": "dma", "backend": backend, "level": "kernel", "pass": "fwd", "delta": "iid", "status": "PASSED"}
    row |= {"device": "NVIDIA H100 80GB HBM3", "dtype": "bf16", "batch": 1, "heads": 16, "kv_heads": 8, "head_dim": 128}
    return row | {"seqlen": 8192, "window": 1024, "total_ms": total} | changes


def cells(*rows):
    return fastest.cells_of_run(rows, "run", "abc")


def test_a_cell_is_what_one_run_timed_of_two_backends_or_more():
    (cell,) = cells(a_row("triton", 2.0), a_row("cuda", 1.00004), a_row("reference", 0.5))
    assert cell.total_ms == (("cuda", 1.0), ("triton", 2.0)) and not cell.backward
    assert (cell.seqlen, cell.window, cell.heads, cell.kv_heads, cell.dtype) == (8192, 1024, 16, 8, "bfloat16")
    assert (cell.device, cell.capability, cell.run, cell.commit) == ("NVIDIA H100 80GB HBM3", (9, 0), "run", "abc")
    assert cells(a_row("triton", 2.0), a_row("cuda", 1.0, seqlen=4096)) == []


@pytest.mark.parametrize(
    "wrong",
    [{"status": "INCORRECT"}, {"level": "layer"}, {"delta": "rising"}, {"function": "dense"}, {"backend": "reference"}],
    ids=str,
)
def test_other_rows_make_no_cell(wrong):
    assert cells(a_row("triton", 2.0), a_row("cuda", 1.0) | wrong) == []


def test_forward_and_backward_together_decide_for_a_call_with_gradients():
    forward = [a_row("triton", 2.0), a_row("cuda", 1.0)]
    backward = [a_row("triton", 5.0, **{"pass": "bwd"}), a_row("cuda", 7.0, **{"pass": "bwd"})]
    assert [(c.backward, c.total_ms[0]) for c in cells(*forward, *backward)] == [
        (False, ("cuda", 1.0)),
        (True, ("triton", 7.0)),
    ]
    both = [a_row("triton", 9.0, **{"pass": "fwd+bwd"}), a_row("cuda", 6.0, **{"pass": "fwd+bwd"})]
    assert cells(*forward, *backward, *both)[1].total_ms == (("cuda", 6.0), ("triton", 9.0))
    # A backend without one of the two takes no part.
    assert [c.backward for c in cells(*forward, backward[0])] == [False]


def test_an_unknown_device_serves_its_own_name_alone():
    rows = [a_row(name, ms, device="Some card") for name, ms in (("cuda", 1.0), ("triton", 2.0))]
    assert cells(*rows)[0].capability is None


def test_the_newest_run_of_a_cell_counts(tmp_path):
    for day, times in ((24, (1.0, 2.0)), (25, (3.0, 2.5))):
        folder = tmp_path / f"202611{day}T000000Z-kernels-abc"
        folder.mkdir()
        about = {"command": "kernels", "run": folder.name, "started": f"2026-11-{day}", "schema": 1}
        about["environment"] = {"git": {"sha": f"{day}cdef0", "dirty": day == 25}}
        (folder / "manifest.json").write_text(json.dumps(about))
        rows = [{"schema": 1, **a_row(name, ms)} for name, ms in zip(("cuda", "triton"), times, strict=True)]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (cell,) = fastest.cells_of(run_paths(tmp_path))
    assert cell.total_ms[0] == ("triton", 2.5) and cell.commit == "25cdef0-dirty"


def _has_history() -> bool:
    commits = {cell.commit for cell in measured.CELLS}
    asked = [["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"] for commit in commits]
    try:
        return all(subprocess.run(one, capture_output=True, check=False).returncode == 0 for one in asked)
    except OSError:
        return False


def test_the_committed_table_is_that_of_the_committed_rows():
    found = fastest.cells_of(run_paths(REFERENCE))
    assert tuple(found) == measured.CELLS, "run: dmabench tune --from-rows results/reference"
    if not _has_history():
        pytest.skip("the history that tells a commit's sources is not here")
    assert fastest.module_of(found, ROOT) == (ROOT / "kernels" / "measured.py").read_text()


def test_sources_are_told_alike_from_history_and_from_files(tmp_path):
    folder = tmp_path / "kernels" / "dma_flex.py"
    folder.parent.mkdir()
    folder.write_bytes((ROOT / "kernels" / "dma_flex.py").read_bytes())
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "--no-verify", "--no-gpg-sign", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    assert fastest.sources_at(tmp_path, "HEAD", "flex") == choice.sources("flex")
    folder.write_text("other")
    for words in (["add", "."], ["commit", "-q", "--no-verify", "--no-gpg-sign", "-m", "two"]):
        subprocess.run([*git, *words], check=True)
    assert fastest.sources_at(tmp_path, "HEAD", "flex") != choice.sources("flex")
    assert fastest.sources_at(tmp_path, "HEAD", "cuda") is None
    assert fastest.sources_at(tmp_path, "0000000", "flex") is None


@pytest.mark.parametrize("path", run_paths(REFERENCE), ids=lambda path: path.name)
def test_the_choice_is_within_five_percent_of_the_best_of_every_run(path, monkeypatch):
    """Also of runs that a newer one has replaced: no choice is bought with a loss that was measured."""
    monkeypatch.setattr("dmabench.kernels.registry.Backend.refusal", lambda self, problem: None)
    for cell in fastest.cells_of_run(read_rows(path)[0], path.name, "any"):
        problem = Problem(
            "cuda", getattr(torch, cell.dtype), cell.batch, cell.heads, cell.kv_heads, cell.seqlen, cell.seqlen,
            cell.head_dim, cell.window, cell.backward,
        )  # fmt: skip
        chosen = choice.fastest(problem, (cell.device, cell.capability or (0, 0))).name
        times = dict(cell.total_ms)
        assert times[chosen] <= 1.05 * min(times.values()), (chosen, cell)
