"""`dmabench tune` on a machine without a GPU: what it refuses, what it compiles, and the table of "auto"."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.kernels import measured
from dmabench.kernels.dma_triton import ahead, candidates, configs, tuned
from dmabench.kernels.dma_triton.ahead import Taken
from dmabench.kernels.dma_triton.tuned import Config

ROOT = Path(__file__).resolve().parents[3]


def run(*words):
    return CliRunner().invoke(app, ["tune", *words])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def compiled(monkeypatch):
    """What was to be compiled; nothing is, since that takes seconds a candidate."""
    asked = []
    monkeypatch.setattr(ahead, "compile_ahead", lambda *given: asked.append(given))
    monkeypatch.setattr(ahead, "taken", lambda _: Taken(200, 0, 100 << 10, 0, len(asked) == 1))
    return asked


def test_without_a_gpu_nothing_is_tuned(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    result = run()
    assert result.exit_code == 3 and "needs a CUDA device" in result.stderr and "--dry-run" in result.stderr
    assert not tuned.path().exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--kernel", "dq"], "--kernel 'dq' is unknown; choose from forward, queries, keys"),
        (["--dtype", "fp32"], "there are candidates for bf16 and fp16"),
        (["--seqlen", "8k,32k"], "one shape at a time"),
        (["--heads", "3", "--kv-heads", "2"], "not a multiple"),
        (["--head-dim", "512"], "outside 16..256"),
        (["--cap", "0"], "more than 0"),
        (["--delta", "iid,rising"], "name one distribution"),
        (["--arch", "90"], "--arch is of --dry-run"),
        (["--output", "x"], "--output is of --from-rows"),
        (["--dry-run", "--arch", "70"], "--arch 70 is unknown"),
        (["--from-rows", "nowhere"], "no such folder"),
        (["--seqlen", "8k", "--window", "4k"], "--window 4k of --seqlen 8k: keys are not gathered by list there"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_what_cannot_be_done_is_refused_in_a_sentence(words, told, compiled):
    result = run(*words)
    assert isinstance(result.exception, Refusal) and told in str(result.exception)
    assert not compiled


def test_a_dry_run_compiles_the_default_and_every_candidate(compiled):
    result = run("--dry-run", "--arch", "80", "--head-dim", "64", "--json")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    count = sum(len(candidates.candidates(kernel, 64)) for kernel in tuned.KERNELS)
    assert len(rows) == len(compiled) == count + 3
    assert [row["kernel"] for row in rows if row["default"]] == list(tuned.KERNELS)
    assert rows[0]["serialised"] and not rows[1]["serialised"] and rows[1]["registers"] == 200
    assert {given[4] for given in compiled} == {80} and not tuned.path().exists()


def test_heads_that_do_not_share_keys_are_not_candidates_for_one_program(compiled):
    result = run("--dry-run", "--kernel", "forward", "--heads", "6", "--kv-heads", "2", "--json")
    assert {json.loads(line)["heads"] for line in result.stdout.splitlines()} == {1}


def test_the_table_fits_a_narrow_terminal(compiled, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = run("--dry-run", "--kernel", "forward").stdout
    assert "2 heads" in table and "default" in table and "serial" in table and "…" not in table
    assert max(map(len, table.splitlines())) <= 80 and "of default" not in table  # nothing was timed


def test_winners_are_kept_and_said(monkeypatch):
    """With the measuring replaced: what it finds is stored by the key of the device."""
    from dmabench.timing.tuning import TIMED, Candidate

    cli = sys.modules["dmabench.cli.tune"]
    best = Config(64, 64, 4, 2)
    key = tuned.Key("A card", "3.6.0", "bfloat16", 128, "0")
    found = [
        Candidate("forward", configs.choose(128, torch.bfloat16, configs.HOPPER).forward, True, TIMED, ms=2.0),
        Candidate("forward", best, status=TIMED, ms=1.0),
    ]
    monkeypatch.setattr(cli, "_timed", lambda *given: (found, key))
    result = run("--kernel", "forward", "--no-store")
    assert result.exit_code == 0 and "winner" in result.stdout and not tuned.path().exists()
    result = run("--kernel", "forward", "--window", "512")
    assert result.exit_code == 0 and "forward: 64x64, 4 warps, 2 stages, 1 ms" in result.stderr
    assert tuned.read(key) == {"forward": best}
    (entry,) = json.loads(tuned.path().read_text())
    assert entry["shape"]["window"] == 512 and entry["shape"]["delta"] == "iid" and entry["ms"] == 1.0
    monkeypatch.setattr(cli, "_timed", lambda *given: ([found[1]], key))
    assert run("--kernel", "forward").exit_code == 3  # nothing to compare with


def test_the_table_of_auto_is_made_from_rows(tmp_path):
    printed = run("--from-rows", str(ROOT / "results" / "reference"))
    assert printed.exit_code == 0 and printed.stdout.count("Cell(") == len(measured.CELLS)
    file = tmp_path / "made.py"
    written = run("--from-rows", str(ROOT / "results" / "reference"), "--output", str(file))
    assert written.exit_code == 0 and file.read_text() == printed.stdout
    assert f"{len(measured.CELLS)} cells of {len({cell.run for cell in measured.CELLS})} runs" in written.stderr
    nothing = run("--from-rows", str(tmp_path))
    assert isinstance(nothing.exception, Refusal) and "no run there timed two backends" in str(nothing.exception)
