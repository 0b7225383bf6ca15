"""Rows as `dmabench kernels` writes them, made up: simple enough to know every ratio by heart."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dmabench.store import runs

SHAPE = {
    "pass": "fwd",
    "level": "kernel",
    "batch": 1,
    "heads": 16,
    "kv_heads": 8,
    "head_dim": 128,
    "dtype": "bf16",
    "device": "NVIDIA H100 80GB HBM3",
}
ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.7",
    "platform": "Linux 6.1 x86_64",
    "versions": {"dmabench": "0.1.0", "torch": "2.11.0", "triton": "3.6.0", "numpy": "2.4.0"},
    "git": {"sha": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "gpus": [{"name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-1", "driver": "580.1", "memory_mib": 81559.0}],
    "visible_gpus": None,
    "cpu": {"model": "Some CPU", "cores": 2},
}


def make_row(name: str, seqlen: int = 8192, total_ms: float | None = 1.0, **fields: Any) -> dict[str, Any]:
    """A PASSED row of backend `name` (function/backend) whose interval is 1% either side of total_ms."""
    function, backend = name.split("/")
    row: dict[str, Any] = {"function": function, "backend": backend, "status": "PASSED", "reason": None, **SHAPE}
    row |= {"seqlen": seqlen, "window": None if function == "dense" else 1024, "density": 1.0, "seed": 0}
    row |= {"delta": "iid" if function == "dma" else None, "importance_ms": None, "plan_ms": None}
    if total_ms is not None:
        row |= {"total_ms": total_ms, "kernel_ms": total_ms, "gpu_ms": total_ms, "wall_ms": total_ms, "samples": 50}
        row |= {"p10_ms": 0.99 * total_ms, "p90_ms": 1.01 * total_ms, "useful_tflops": 120.0, "roof_percent": 60.0}
        row |= {"error": 1e-3, "error_budget": 4e-3, "peak_mib": 512.0}
    if function != "dense":
        row["density"] = 2 * 1024 / seqlen
    if function == "dma" and total_ms is not None:
        row |= {"importance_ms": 0.01, "plan_ms": 0.02, "kernel_ms": total_ms - 0.03}
    row |= fields
    row["cell"] = f"{name}-{row['seqlen']}-{row['window']}-{row['pass']}-{row['delta']}"
    return row


@pytest.fixture
def row():
    """make_row(name, seqlen, total_ms, **fields)"""
    return make_row


@pytest.fixture
def environment():
    """A manifest's environment: an H100 and a commit."""
    return ENVIRONMENT


@pytest.fixture
def sweep():
    """A whole forward sweep: three dense backends, dma/flex twice as fast at 8192, six times at 131072, and so on."""
    rows = []
    for seqlen in (8192, 32768, 131072):
        dense = 0.5 * (seqlen / 8192) ** 2
        rows += [
            make_row("dense/sdpa-cudnn", seqlen, dense),
            make_row("dense/sdpa-flash", seqlen, 1.6 * dense),
            make_row("dma/flex", seqlen, 0.25 * seqlen / 8192, density=0.99 * 8192 / seqlen / 2),
            make_row("swa/flex", seqlen, 0.2 * seqlen / 8192, density=0.99 * 8192 / seqlen / 4),
        ]
    rows.append(make_row("dense/sdpa-math", 8192, 40.0))
    for seqlen in (32768, 131072):
        rows.append(make_row("dense/sdpa-math", seqlen, None, status="OUT_OF_MEMORY", reason="needs 128 GiB"))
    rows.append(make_row("dma/cuda", 8192, None, status="UNSUPPORTED", reason="the CUDA kernels are not built yet"))
    return rows


@pytest.fixture
def stored(tmp_path, monkeypatch, environment, sweep):
    """A results root with one finished run of the sweep, and the run's folder."""
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    root = tmp_path / "results"
    run = runs.Run.start(
        root, "kernels", ["kernels", "--seqlen", "8k,32k,128k"], {"seqlen": [8192, 32768, 131072]}, environment
    )
    for one in sweep:
        run.append(one, {"gpu_ms": [1.0, 2.0]})
    run.finish()
    return root, run.path


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A call that installs backends from another distribution: its source, which defines BACKENDS; see entry_points."""

    def install(source: str) -> None:
        (tmp_path / "outside_backends.py").write_text(source)
        metadata = tmp_path / "outside-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[dmabench.backends]\noutside = outside_backends:BACKENDS\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    return install


def beside(name: str) -> Any:
    """A module of this folder that holds no tests; pytest puts the folder on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained():
    """The module made_up_tasks.py: MQAR, PATTERNS and NEEDLE that train nothing, and made_up(task, attention, ...)."""
    return beside("made_up_tasks")


@pytest.fixture(scope="session")
def toys():
    """The module toys.py: installs the toy task as another package's, and runs commands with it."""
    return beside("toys")


@pytest.fixture(scope="session")
def toy():
    """The toy task, without its package."""
    return beside("toy_task").TASK
