"""A dying, hanging or failing backend costs one cell: the others of its shape are measured all the same."""

import pytest

from dmabench.store.rows import FIELDS
from dmabench.timing.isolation import Worker
from dmabench.workload.cells import Cell, Shape

SHAPE = Shape("fwd", "kernel", 64, 1, 2, 1, 16, "fp32", 0, "cpu")
OUTSIDE = """
import os, signal, time
from dmabench.kernels import Backend, dma_reference


def reference(q, k, v, **options):
    return dma_reference.attend(q, k, v, **options)

def dies(q, k, v, **options):
    os.kill(os.getpid(), signal.SIGSEGV)

def killed(q, k, v, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(q, k, v, **options):
    os._exit(3)

def hangs(q, k, v, **options):
    time.sleep(600)

def raises(q, k, v, **options):
    raise RuntimeError("no such luck")

def starves(q, k, v, **options):
    raise MemoryError("needs 10 TiB")

calls = 0
def goes_bad(q, k, v, **options):
    global calls
    calls += 1
    out, lse = reference(q, k, v, **options)
    return (out if calls < 12 else out + 1), lse

def dies_later(q, k, v, **options):
    global calls
    calls += 1
    if calls > 12:
        os.kill(os.getpid(), signal.SIGSEGV)
    return reference(q, k, v, **options)

BACKENDS = [
    Backend("dma", f.__name__.replace("_", "-"), f, passes=("fwd",))
    for f in (dies, killed, leaves, hangs, raises, starves, goes_bad, dies_later)
]
"""


@pytest.fixture(autouse=True)
def failing_backends(outside):
    outside(OUTSIDE)


def cell(name: str) -> Cell:
    function, backend = name.split("/")
    return Cell(function, backend, SHAPE, None if function == "dense" else 16, "iid" if function == "dma" else None)


def measure(*names: str) -> dict[str, dict]:
    with Worker(60) as worker:
        messages = list(worker.measure([cell(name) for name in names], {"cap_s": 0.02}, lambda *_: None))
    rows = {f"{m['row']['function']}/{m['row']['backend']}": m["row"] for m in messages}
    assert len(rows) == len(messages) == len(names)
    return rows


def test_each_way_to_fail_costs_one_cell():
    rows = measure(
        "dma/reference",
        "dma/dies",
        "dma/leaves",
        "dma/raises",
        "dma/starves",
        "dma/triton",
        "dense/sdpa-math",
    )
    found = {name: row["status"] for name, row in rows.items()}
    assert found == {
        "dma/reference": "PASSED",
        "dma/dies": "RUNTIME_ERROR",
        "dma/leaves": "RUNTIME_ERROR",
        "dma/raises": "RUNTIME_ERROR",
        "dma/starves": "OUT_OF_MEMORY",
        "dma/triton": "UNSUPPORTED",
        "dense/sdpa-math": "PASSED",
    }
    assert "SIGSEGV" in rows["dma/dies"]["reason"]
    assert "exit code 3" in rows["dma/leaves"]["reason"]
    assert "no such luck" in rows["dma/raises"]["reason"]
    assert all(row["reason"] for row in rows.values() if row["status"] != "PASSED")


def test_a_worker_that_is_killed_ran_out_of_memory():
    rows = measure("dma/killed", "dense/sdpa-math")
    assert {name: row["status"] for name, row in rows.items()} == {
        "dma/killed": "OUT_OF_MEMORY",
        "dense/sdpa-math": "PASSED",
    }
    assert rows["dma/killed"]["reason"]


def test_a_hanging_backend_is_a_timeout():
    """Patience ends with the cell that hangs: what others may take depends on the machine."""
    cells = [cell("dma/hangs"), cell("dense/sdpa-math")]
    with Worker(60) as worker:

        def began(one: Cell, stage: str) -> None:
            worker.timeout_s = 1.0 if one == cells[0] else 60

        messages = list(worker.measure(cells, {"cap_s": 0.02}, began))
    rows = {message["row"]["backend"]: message["row"] for message in messages}
    assert len(messages) == len(rows) == 2
    assert rows["hangs"]["status"] == "TIMEOUT" and "no answer for 1 s" in rows["hangs"]["reason"]
    assert rows["sdpa-math"]["status"] == "PASSED"


def test_a_death_while_timing_is_laid_at_the_right_door():
    rows = measure("dense/sdpa-math", "dma/dies-later")
    assert rows["dma/dies-later"]["status"] == "RUNTIME_ERROR"
    assert rows["dense/sdpa-math"]["status"] == "PASSED"


def test_what_goes_wrong_after_the_check_is_incorrect():
    row = measure("dma/goes-bad")["dma/goes-bad"]
    assert (row["status"], row["total_ms"]) == ("INCORRECT", None)
    assert "after timing" in row["reason"]


def test_every_row_has_every_field():
    rows = measure("dma/reference", "dma/raises", "dense/sdpa-flash")
    for row in rows.values():
        assert set(FIELDS) <= row.keys()
    passed = rows["dma/reference"]
    assert passed["importance_ms"] > 0 and passed["plan_ms"] > 0 and passed["kernel_ms"] > 0
    assert passed["p10_ms"] <= passed["total_ms"] <= passed["p90_ms"]
    assert passed["samples"] >= 5 and passed["error"] <= passed["error_budget"]
    assert rows["dense/sdpa-flash"]["density"] == 1.0 and passed["density"] < 0.5
    assert rows["dma/raises"]["total_ms"] is None
