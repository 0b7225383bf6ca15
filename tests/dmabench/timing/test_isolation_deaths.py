"""A hundred deaths of real processes cost a hundred cells and nothing else.

The worker that dies is dying_worker.py, which starts in a twentieth of a second where the real one imports torch. What
is tested is the parent: which cell it blames, what it sends again, what it holds on to. test_isolation.py kills the
real worker from within real backends.
"""

import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dmabench.timing.isolation import Worker
from dmabench.workload.cells import Cell, Shape, by_shape

SHAPE = Shape("fwd", "kernel", 64, 1, 2, 1, 16, "fp32", 0, "cpu")
COMMAND = (sys.executable, "-P", str(Path(__file__).parent / "dying_worker.py"))
STAGES = ("check", "timing", "check after timing", "answer")
STATUS = {
    "sigsegv": ("RUNTIME_ERROR", "SIGSEGV"),
    "sigkill": ("OUT_OF_MEMORY", "the system killed the worker"),
    "sigabrt": ("RUNTIME_ERROR", "SIGABRT"),
    "exit": ("RUNTIME_ERROR", "exit code 3"),
}
FATES = [f"{how}-{stage}" for stage in STAGES for how in STATUS]


def _cells(deaths: int, group: int = 30) -> list[Cell]:
    """A dying cell, two healthy ones, and so on, in groups of several shapes; every third group begins healthy."""
    fates = [FATES[n // 3 % len(FATES)] if n % 3 == 0 else "healthy" for n in range(3 * deaths)]
    cells = []
    for n, fate in enumerate(fates):
        shape = replace(SHAPE, seqlen=64 + n // group)
        cells.append(Cell("dma", f"{fate}-{n}", shape, 16, "iid"))
    return [cell for k, g in enumerate(by_shape(cells)) for cell in (g[1:] + g[:1] if k % 3 == 0 else g)]


def _measure(cells: list[Cell], worker: Worker) -> list[dict]:
    messages = [m for group in by_shape(cells) for m in worker.measure(group, {}, lambda *_: None)]
    return [message["row"] for message in messages]


def _check(cells: list[Cell], rows: list[dict]) -> None:
    assert Counter(row["cell"] for row in rows) == Counter(cell.id for cell in cells)  # one row each, nobody else's
    for row in rows:
        how = row["backend"].split("-")[0]
        if how == "healthy":
            assert row["status"] == "PASSED", row
        else:
            status, reason = STATUS[how]
            assert row["status"] == status and reason in row["reason"], row


class _Counted(Worker):
    started = 0

    def _start(self):
        before = self._process
        process = super()._start()
        self.started += process is not before
        return process


def test_a_hundred_deaths_cost_a_hundred_cells(tmp_path):
    cells = _cells(100)
    assert sum("healthy" in cell.backend for cell in cells) == 200 and len(by_shape(cells)) == 10
    with _Counted(60, tmp_path / "log", COMMAND) as worker:
        rows = _measure(cells, worker)
        assert 100 <= worker.started <= 101  # each death was one, and no healthy worker was thrown away
    _check(cells, rows)
    assert (tmp_path / "log").read_text() == ""  # nobody died of anything else


@pytest.mark.parametrize("stage", STAGES)
def test_a_group_of_nothing_but_deaths(stage):
    cells = [Cell("dma", f"{how}-{stage}-{n}", SHAPE, 16, "iid") for n, how in enumerate(STATUS)]
    with Worker(60, command=COMMAND) as worker:
        _check(cells, _measure(cells, worker))
        healthy = [Cell("dma", "healthy-0", replace(SHAPE, seqlen=65), 16, "iid")]
        _check(healthy, _measure(healthy, worker))


def test_the_dead_leave_nothing_behind():
    """Neither pipes nor threads nor processes: a long run outlives any number of deaths."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc to count open files")
    with Worker(60, command=COMMAND) as worker:
        _measure(_cells(1), worker)
        files, threads = len(list(descriptors.iterdir())), threading.active_count()
        _measure(_cells(12), worker)
        deadline = time.monotonic() + 30  # the thread that read what a dead one said may still be on its way out
        while time.monotonic() < deadline and threading.active_count() > threads + 1:
            time.sleep(0.01)
        assert len(list(descriptors.iterdir())) <= files + 2 and threading.active_count() <= threads + 1


def test_starting_does_not_count_as_silence():
    """Importing torch takes longer on a busy machine than one stage of a cell may, where --cell-timeout is short."""
    code = f"import runpy, sys, time; time.sleep(1); runpy.run_path({COMMAND[-1]!r}, run_name='__main__')"
    cells = [Cell("dma", f"healthy-{n}", SHAPE, 16, "iid") for n in range(2)]
    with Worker(0.2, command=(sys.executable, "-P", "-c", code)) as worker:

        def began(cell: Cell, stage: str) -> None:
            worker.timeout_s = 60  # from the first sign of life on, what takes how long is the machine's affair

        rows = [message["row"] for message in worker.measure(cells, {}, began)]
    assert [row["status"] for row in rows] == ["PASSED"] * 2


@pytest.mark.parametrize("how", STATUS)
def test_a_death_between_groups_costs_nothing(how):
    groups = [f"{how}-asked again-0"], ["healthy-1", f"{how}-timing-2", "healthy-3"]
    with _Counted(60, command=COMMAND) as worker:
        for number, names in enumerate(groups):
            cells = [Cell("dma", name, replace(SHAPE, seqlen=64 + number), 16, "iid") for name in names]
            found = {row["backend"]: row["status"] for row in _measure(cells, worker)}
            assert found == {name: STATUS[how][0] if "timing" in name else "PASSED" for name in names}
        assert worker.started == 3


def test_a_worker_that_cannot_start_fails_its_cells_and_no_more():
    cells = [Cell("dma", f"healthy-{n}", SHAPE, 16, "iid") for n in range(3)]
    with Worker(60, command=(sys.executable, "-c", "raise SystemExit(5)")) as worker:
        rows = _measure(cells, worker)
    assert Counter(row["cell"] for row in rows) == Counter(cell.id for cell in cells)
    assert all(row["status"] == "RUNTIME_ERROR" and "exit code 5" in row["reason"] for row in rows)
