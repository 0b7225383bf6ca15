"""Masks on the report's page: a table and a chart of each run, and how to make one where there is none."""

import re

import pytest

from dmabench.report.page import write_report
from dmabench.store import runs
from dmabench.workload.masks import distribution_rows


@pytest.fixture
def run(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path / "results", "mask", ["mask", "--delta", "iid,<b>"], {}, environment)
    for cell in distribution_rows(["iid", "constant"], [512], [64], 2, 0, {}):
        for row in cell:
            run.append(row)
    run.finish()
    return run


def words(page):
    return " ".join(re.sub("<[^>]+>", " ", page).split())


def test_a_run_has_its_table_its_notes_and_its_chart(run, tmp_path):
    page = write_report([run.path], tmp_path / "report.html").read_text()
    told = words(page)
    assert "Masks of heads" in told and "T 512 · w 64 · density 23.4%" in told
    assert "constant 0 512 64 100% 52 64 64" in told and "ties: of all keys" in told
    assert 'alt="Chart: Lifetimes of keys; T 512  ·  w 64  ·  2 heads, a line each. Lines: iid, constant."' in page
    assert "<b>" not in page and "&lt;b&gt;" in page


def test_a_run_without_rows_and_no_run_at_all(tmp_path, environment):
    empty = runs.Run.start(tmp_path / "results", "mask", ["mask"], {}, environment)
    assert "it has no rows" in words(write_report([empty.path], tmp_path / "empty.html").read_text())
    assert "dmabench mask --model DIR --text FILE" in words(write_report([], tmp_path / "none.html").read_text())
