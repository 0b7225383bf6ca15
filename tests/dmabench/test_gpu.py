"""The harness on a CUDA device: every backend through the gate, device clocks, a broken context."""

import pytest

from dmabench.summaries.speedups import add_speedups
from dmabench.timing.isolation import Worker
from dmabench.workload.cells import by_shape, make_cells
from dmabench.workload.presets import CUDA, DECODE, LAYER

pytestmark = pytest.mark.gpu

OUTSIDE = """
import torch
from dmabench.kernels import Backend, dma_reference

def out_of_bounds(q, k, v, **options):
    q.new_zeros(1)[torch.full((1,), 1 << 20, device=q.device)].sum().item()

BACKENDS = [Backend("dma", "out-of-bounds", out_of_bounds, passes=("fwd",))]
"""


def _measure(replay: bool = False, **settings: str) -> list[dict]:
    from dmabench.kernels import backends

    wanted = {**CUDA, **settings}
    known = [backend.id for backend in backends()]
    cells = make_cells(wanted, known, "cuda", 0, dense=False)
    options = {"cap_s": 0.05, "replay": replay}
    with Worker(300) as worker:
        groups = [worker.measure(group, options, lambda *_: None) for group in by_shape(cells)]
        return [message["row"] for group in groups for message in group]


@pytest.mark.parametrize(
    "shape",
    [
        {"seqlen": "1000", "window": "100", "heads": "8", "kv_heads": "2", "batch": "3", "dtype": "fp16"},
        {"seqlen": "37", "window": "1,100", "head_dim": "64", "delta": "iid,constant"},
        {"seqlen": "4097", "window": "512", "delta": "rising,ar1", "dtype": "bf16"},
    ],
)
def test_every_backend_passes_or_says_why_not(shape):
    rows = _measure(backend="*", **{"pass": "fwd,bwd,fwd+bwd"}, **shape)
    odd = [r for r in rows if r["status"] not in ("PASSED", "UNSUPPORTED") and not _rounds_its_bias(r)]
    assert not odd, [(r["function"], r["backend"], r["pass"], r["status"], r["reason"]) for r in odd]
    passed = {f"{r['function']}/{r['backend']}" for r in rows if r["status"] == "PASSED"}
    assert {"dma/flex", "dma/reference", "dense/sdpa-flash", "dense/sdpa-cudnn", "swa/flex"} <= passed


def _rounds_its_bias(row: dict) -> bool:
    """SDPA takes its mask in q's dtype: a delta of hundreds or thousands, rounded to bf16, is another function. Seen on
    an H200: off by 0.027 (rising) and 0.37 (ar1) against budgets of 0.02. The gate is right to refuse it a time."""
    return row["backend"] == "sdpa-masked" and row["delta"] in ("rising", "ar1") and row["status"] == "INCORRECT"


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("level", ["kernel", "layer"])
@pytest.mark.parametrize(
    "shape",
    [
        {"seqlen": "4096", "window": "1024"},
        {"seqlen": "1000,1023", "window": "100", "heads": "8", "kv_heads": "2", "batch": "3", "dtype": "fp16"},
        {"seqlen": "70000", "window": "1024", "batch": "2", "delta": "rising"},
    ],
)
def test_every_attention_decodes(shape, level, replay):
    rows = _measure(replay, backend=DECODE["cuda"], level=level, **{"pass": "decode"}, **shape)
    told = [(r["function"], r["backend"], r["seqlen"], r["window"], r["reason"]) for r in rows if r["reason"]]
    assert {row["status"] for row in rows} <= {"PASSED", "UNSUPPORTED"}, told
    assert {row["function"] for row in rows if row["status"] == "PASSED"} == {"dma", "dense", "swa", "mla", "nsa"}, told
    for row in rows:
        if row["status"] == "PASSED":
            assert row["cache_mib"] > 0 and (row["total_is"] == "graph") == replay, row["function"]


def test_decoding_dma_keeps_as_much_whatever_was_seen():
    rows = _measure(True, backend="dma/live-keys", seqlen="8192,65536", **{"pass": "decode"})
    assert [row["status"] for row in rows] == ["PASSED"] * 2 and rows[0]["cache_mib"] == rows[1]["cache_mib"] > 0


@pytest.mark.parametrize(
    "shape",
    [
        {"seqlen": "2048", "window": "512"},
        {"seqlen": "1000", "window": "192", "heads": "16", "kv_heads": "1", "batch": "2"},
        {"seqlen": "9000", "window": "1024", "dtype": "fp16"},
    ],
)
@pytest.mark.parametrize("level", ["kernel", "layer"])
def test_every_attention_passes_in_a_layer_and_alone(shape, level):
    rows = _measure(backend=LAYER["cuda"], level=level, **{"pass": "fwd,bwd,fwd+bwd"}, **shape)
    told = [(r["function"], r["backend"], r["pass"], r["window"], r["reason"]) for r in rows if r["reason"]]
    assert {row["status"] for row in rows} <= {"PASSED", "UNSUPPORTED"}, told
    for pass_ in ("fwd", "bwd", "fwd+bwd"):
        passed = {row["function"] for row in rows if row["status"] == "PASSED" and row["pass"] == pass_}
        assert {"dma", "dense", "swa", "mla"} <= passed, told


def test_padded_groups_of_native_sparse_attention_are_marked_and_win_nothing():
    for module in ("fla", "einops"):
        pytest.importorskip(module, reason="nsa/fla needs fla-core and einops")
    padded, native = (
        _measure(backend="nsa/fla,dense/sdpa-flash", seqlen="4096", heads="16", kv_heads=kv_heads)
        for kv_heads in ("8", "1")
    )
    assert {row["padded_heads"] for row in padded if row["function"] == "nsa"} == {16}
    assert {row["padded_heads"] for row in native if row["function"] == "nsa"} == {None}
    assert {row["status"] for row in padded + native} == {"PASSED"}
    assert all(row["speedup"] is None for row in add_speedups(padded) if row["function"] == "nsa")
    assert all(row["speedup"] for row in add_speedups(native) if row["function"] == "nsa")


def test_device_time_and_memory_are_measured():
    (row,) = _measure(backend="dense/sdpa-flash", seqlen="8192")
    assert row["status"] == "PASSED"
    assert 0 < row["gpu_ms"] and row["gpu_ms"] < 2 * row["wall_ms"]
    inputs = 2 * (16 + 2 * 8) * 8192 * 128 / 2**20
    assert inputs < row["peak_mib"] < 4 * inputs
    assert 5 < row["roof_percent"] < 100 and row["roof_tflops"] > 50 and row["roof_gbs"] > 500


def test_a_broken_cuda_context_costs_one_cell(outside):
    outside(OUTSIDE)
    known = ["dma/out-of-bounds", "dma/reference", "dense/sdpa-flash"]
    settings = {**CUDA, "seqlen": "256", "window": "64", "backend": "*"}
    cells = make_cells(settings, known, "cuda", 0, dense=False)
    with Worker(300) as worker:
        messages = list(worker.measure(cells, {"cap_s": 0.05}, lambda *_: None))
    found = {m["row"]["backend"]: m["row"]["status"] for m in messages}
    assert found == {"out-of-bounds": "RUNTIME_ERROR", "reference": "PASSED", "sdpa-flash": "PASSED"}


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_a_replayed_graph_is_timed_or_said_to_be_impossible(pass_):
    backends = "dma/triton,dma/cuda,dma/reference,dense/sdpa-flash,dense/sdpa-cudnn,swa/varlen-flash"
    rows = _measure(True, backend=backends, seqlen="2000", window="200", **{"pass": pass_})
    rows = {f"{row['function']}/{row['backend']}": row for row in rows}
    for name in ("dma/triton", "dma/cuda", "dense/sdpa-flash", "dense/sdpa-cudnn", "swa/varlen-flash"):
        assert (rows[name]["status"], rows[name]["total_is"]) == ("PASSED", "graph"), rows[name]["reason"]
    reference = rows["dma/reference"]  # its plan reads a flag from the device; its backward, on a plan, does not
    if pass_ != "bwd":
        assert reference["status"] == "UNSUPPORTED" and "cannot be captured in a CUDA graph" in reference["reason"]
