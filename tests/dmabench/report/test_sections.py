"""Runs drawn in several processes make the page and the files that one process makes."""

import re
from concurrent.futures.process import BrokenProcessPool

import pytest

from dmabench.report import sections as module
from dmabench.report.files import Files
from dmabench.report.page import write_report
from dmabench.report.reading import read
from dmabench.store import runs

STATUS = ("PASSED", "OUT_OF_MEMORY")


@pytest.fixture
def several(tmp_path, environment, row, monkeypatch):
    """Folders of FEWEST runs of kernels, of which one has a time and charts, and of one of masks whose rows are of
    another kind."""
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    paths = []
    for number in range(module.FEWEST):
        run = runs.Run.start(tmp_path / "results", "kernels", ["kernels"], {}, environment)
        run.append(row("dense/sdpa-cudnn", 8192, 8.0 if number == 0 else None, status=STATUS[number > 0]))
        paths.append(run.path)
    run = runs.Run.start(tmp_path / "results", "mask", ["mask"], {}, environment)
    run.append({"status": "PASSED"})
    return [*paths, run.path]


def written(folder):
    """Every file but the page's date, by its name."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: re.sub(rb"20\d\d-\d\d-\d\d \d\d:\d\d UTC", b"", content) for name, content in found.items()}


def test_two_processes_write_what_one_writes(several, tmp_path):
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        write_report(several, tmp_path / str(processes) / "report.html", processes)
    one, two = written(tmp_path / "1"), written(tmp_path / "2")
    assert len(one) > 20 and one == two


def test_a_machine_that_starts_no_process_draws_them_all_here(several, tmp_path, monkeypatch):
    class Broken(module.ProcessPoolExecutor):
        def submit(self, *_):
            raise BrokenProcessPool("no shared memory")

    monkeypatch.setattr(module, "ProcessPoolExecutor", Broken)
    stored, _ = read(several)
    made = module.sections(stored, Files(tmp_path / "r.html"), 2)
    assert [one.section["name"] for one in made] == [path.name for path in several]
    assert [bool(one.section["charts"]) for one in made] == [True, False, False, False]
