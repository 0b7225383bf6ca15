"""Which backend "auto" takes: the nearest measured cell decides, on devices like it, among those that do not refuse."""

import logging
from dataclasses import replace

import pytest
import torch

from dmabench.kernels import Problem, choice, dma, dynamic_mask_attention, registry
from dmabench.kernels.choice import Cell, fastest
from dmabench.kernels.measured import CELLS, SOURCES

H100, H200, A100 = ("H100", (9, 0)), ("H200", (9, 0)), ("A100", (8, 0))
SHORT = Cell("H100", (9, 0), False, "bfloat16", 1, 16, 8, 128, 8192, 1024, (("cuda", 1.0), ("triton", 2.0)), "r", "c")
LONG = replace(SHORT, seqlen=131072, total_ms=(("triton", 10.0), ("cuda", 11.0)))
TRAINED = replace(SHORT, backward=True, total_ms=(("flex", 3.0), ("triton", 4.0), ("cuda", 5.0)))
CELLS_HERE = (SHORT, LONG, TRAINED)


@pytest.fixture(autouse=True)
def a_card(monkeypatch):
    """Every backend is installed and there is a card; what each refuses stays."""
    ours = {b.id: replace(b, missing=lambda device: None) for b in registry.backends()}
    monkeypatch.setattr(registry, "get", ours.__getitem__)


def problem(seqlen=8192, *, dtype=torch.bfloat16, window=1024, heads=16, groups=2, head_dim=128, backward=False):
    return Problem("cuda", dtype, 1, heads, heads // groups, seqlen, seqlen, head_dim, window, backward)


def test_the_nearest_cell_decides():
    assert fastest(problem(), H100, CELLS_HERE).name == "cuda"
    assert fastest(problem(16384), H100, CELLS_HERE).cell == SHORT
    assert fastest(problem(65536), H100, CELLS_HERE).cell == LONG
    assert fastest(problem(1 << 20), H100, CELLS_HERE).name == "triton"
    assert fastest(problem(backward=True), H100, CELLS_HERE).name == "flex"


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"window": 4096}, {"window": 4096}),
        ({"head_dim": 64}, {"head_dim": 64}),
        ({"kv_heads": 16}, {"groups": 1}),
        ({"heads": 64, "kv_heads": 32}, {"heads": 64}),
        ({"dtype": "float16"}, {"dtype": torch.float16}),
    ],
)
def test_every_size_and_the_dtype_count(change, given):
    other = replace(SHORT, total_ms=(("triton", 1.0), ("cuda", 2.0)), **change)
    for cells in ((SHORT, other), (other, SHORT)):
        assert fastest(problem(), H100, cells).cell == SHORT
        assert fastest(problem(**given), H100, cells).cell == other


def test_a_backend_that_refuses_is_passed_over():
    # dma/cuda has no head dimension 96.
    assert fastest(problem(head_dim=96), H100, (SHORT,)).name == "triton"
    assert fastest(problem(head_dim=512), H100, (SHORT,)).cell is None


def test_a_device_of_the_same_capability_counts_and_its_own_cells_first():
    own = replace(SHORT, device="H200", total_ms=(("triton", 1.0), ("cuda", 2.0)))
    assert fastest(problem(), H200, (SHORT,)).cell == SHORT
    for cells in ((SHORT, own), (own, SHORT)):
        assert fastest(problem(), H200, cells).cell == own
        assert fastest(problem(), H100, cells).cell == SHORT


@pytest.mark.parametrize(
    ("device", "asked"), [(A100, problem()), (None, problem()), (H100, problem(dtype=torch.float32))]
)
def test_what_was_not_measured_falls_back_to_the_fixed_order_and_says_so(device, asked):
    found = fastest(asked, device, CELLS_HERE)
    assert found.cell is None and "fixed order" in found.why and "measured" in choice.explain(found)
    assert found.name == ("cuda" if asked.dtype == torch.bfloat16 else "triton")
    backward = replace(asked, backward=True)
    assert fastest(backward, device, CELLS_HERE).name == "triton"


def test_a_cell_whose_kernels_have_changed_says_so(monkeypatch):
    then = {"c": {"cuda": choice.sources("cuda"), "triton": "something else"}}
    monkeypatch.setattr("dmabench.kernels.measured.SOURCES", then)
    assert choice.changed_since(SHORT) == ["triton"]
    told = choice.explain(fastest(problem(16384), H100, CELLS_HERE))
    assert (
        "commit c; changed since: dma/triton" in told and "cuda 1 ms, triton 2 ms" in told and "1.0 doublings" in told
    )
    monkeypatch.setitem(then["c"], "triton", choice.sources("triton"))
    assert "changed" not in choice.explain(fastest(problem(), H100, CELLS_HERE))


def test_cells_of_the_kernels_of_today_go_before_those_of_others_that_are_somewhat_nearer(monkeypatch):
    now = {name: choice.sources(name) for name in ("cuda", "triton")}
    monkeypatch.setattr("dmabench.kernels.measured.SOURCES", {"new": now})
    new = replace(LONG, device="H200", commit="new", seqlen=32768)
    assert fastest(problem(), H100, (SHORT, new)).cell == new  # two doublings away
    assert fastest(problem(), H100, (SHORT, replace(new, seqlen=131072))).cell == SHORT  # four


def test_a_cell_without_a_digest_counts_as_changed(monkeypatch):
    monkeypatch.setattr("dmabench.kernels.measured.SOURCES", {})
    assert choice.changed_since(SHORT) == ["cuda", "triton"]


def test_auto_asks_the_table_with_the_device_of_the_call(monkeypatch, caplog):
    monkeypatch.setattr(choice, "device_class", lambda device: H100)
    monkeypatch.setattr(choice, "_committed", lambda: CELLS_HERE)
    caplog.set_level(logging.INFO, "dmabench.kernels")
    assert dma._fastest(problem(backward=True), torch.device("cuda:0")) == "flex"
    assert "flex 3 ms" in caplog.text
    monkeypatch.setattr(dma, "traced", lambda: True)
    assert dma._fastest(problem(backward=True), torch.device("cuda:0")) == "triton"


def test_a_cpu_takes_the_reference_and_says_why(inputs, caplog):
    caplog.set_level(logging.INFO, "dmabench.kernels")
    dynamic_mask_attention(*inputs(1, 2, 1, 8, 8, 16, torch.float32), 4)
    assert "dma/reference: on a CPU" in caplog.text


def test_there_is_no_class_of_a_device_that_is_not_there():
    assert choice.device_class(torch.device("cpu")) is None


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.run}-{c.seqlen}-{c.window}-{c.kv_heads}-{c.backward}")
def test_committed_cells_are_whole_and_decide_for_themselves(cell):
    times = [ms for _, ms in cell.total_ms]
    assert times == sorted(times) and len(times) > 1 and {name for name, _ in cell.total_ms} <= set(choice.CANDIDATES)
    assert set(SOURCES[cell.commit]) >= {name for name, _ in cell.total_ms}
    groups = cell.heads // cell.kv_heads
    dtype = getattr(torch, cell.dtype)
    asked = Problem(
        "cuda", dtype, cell.batch, cell.heads, cell.heads // groups, cell.seqlen, cell.seqlen, cell.head_dim,
        cell.window, cell.backward,
    )  # fmt: skip
    found = fastest(asked, (cell.device, cell.capability))
    if choice.changed_since(cell) and found.cell != cell:
        assert not choice.changed_since(found.cell), "what is stale gives way to what is not, and to nothing else"
        return
    assert found.cell == cell and found.name == cell.total_ms[0][0] and "this cell" in found.why
