import json
import re

import pandas
import pytest
import typer
from typer.testing import CliRunner

from dmabench.cli import export, listing
from dmabench.errors import Refusal
from dmabench.report import export as export_module
from dmabench.store import runs


@pytest.fixture
def call():
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    for command in (export, listing):
        command.add_to(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def trained_run(stored, environment, trained):
    """A run of mqar beside the stored one, its rows with a list in them."""
    run = runs.Run.start(stored[0], "mqar", ["mqar", "--pairs", "8"], {}, environment)
    for attention in ("mha", "dma"):
        run.append(trained.made_up(trained.MQAR, attention, accuracy=0.99) | {"lengths": [8, 16]})
    run.finish()
    return run


def test_help_has_three_examples(call):
    result = call("export", "--help")
    assert result.exit_code == 0 and result.stdout.count("dmabench export") >= 3


def test_csv_beside_the_rows_holds_every_row_and_field(call, stored):
    root, path = stored
    result = call("export", path.name, "--results", root)
    assert result.exit_code == 0 and result.stdout.strip() == str(path / "rows.csv")
    frame = pandas.read_csv(path / "rows.csv")
    rows, _ = runs.read_rows(path)
    assert len(frame) == len(rows) and set(frame.run) == {path.name} and set(frame.commit.astype(str)) == {"123456"}
    assert {name for row in rows for name in row} <= set(frame.columns)
    passed = frame[frame.status == "PASSED"]
    assert passed.total_ms.tolist() == [row["total_ms"] for row in rows if row["status"] == "PASSED"]


def test_parquet_keeps_numbers_and_lists(call, stored, trained_run, tmp_path):
    out = tmp_path / "new" / "all.parquet"
    result = call("export", stored[1].name, trained_run.name, "--results", stored[0], "--out", out)
    assert result.exit_code == 0, result.stderr
    frame = pandas.read_parquet(out)
    assert len(frame) == 18 and frame.total_ms.dtype == float
    (lengths,) = {tuple(value) for value in frame.lengths if value is not None}
    assert lengths == (8, 16)


def test_markdown_has_the_tables_and_the_doubts(call, stored, trained_run):
    out = call(
        "export", stored[1].name, trained_run.name, "--results", stored[0], "--format", "md", "--out", "-"
    ).stdout
    assert f"## {stored[1].name}" in out and f"## {trained_run.name}" in out
    assert "`dmabench mqar --pairs 8` · NVIDIA H100 80GB HBM3 · torch 2.11.0, triton 3.6.0 · 0123456 · finished" in out
    assert re.search(r"\| dma/flex \| 8192 .*\| PASSED \|", out) and re.search(r"^\| mha +\|", out, re.MULTILINE)
    assert "- [1] " in out  # why a row has no time


def test_several_formats_take_the_endings(call, stored, tmp_path):
    result = call("export", "latest", "--results", stored[0], "--format", "csv,md", "--out", tmp_path / "run")
    assert result.stdout.split() == [str(tmp_path / "run.csv"), str(tmp_path / "run.md")]
    assert (tmp_path / "run.md").read_text().startswith("## ")


def test_lists_in_csv_and_unlike_values_in_parquet_become_json(tmp_path, stored, environment):
    run = runs.Run.start(stored[0], "other", [], {}, environment)
    run.append({"cell": "a", "value": [1, [2, "x"]], "unlike": 1})
    run.append({"cell": "b", "value": None, "unlike": "one"})
    files = {form: tmp_path / f"out.{form}" for form in export_module.FORMATS}
    told = export_module.write([run.path], stored[0], files)
    assert "still being written" in told[0]
    for frame in (pandas.read_csv(files["csv"]), pandas.read_parquet(files["parquet"])):
        assert json.loads(frame["value"][0]) == [1, [2, "x"]] and pandas.isna(frame["value"][1])
        assert frame["unlike"].tolist() == ["1", "one"]
    assert "| a |" in files["md"].read_text()


def test_a_damaged_row_is_named(call, stored):
    root, path = stored
    with open(path / "rows.jsonl", "a") as file:
        file.write("{")
    result = call("export", "latest", "--results", root)
    assert result.exit_code == 0 and "line 17: damaged, skipped" in result.stderr


def refusal(result):
    assert isinstance(result.exception, Refusal), result.output
    return str(result.exception)


def test_refusals(call, stored, trained_run, tmp_path, monkeypatch):
    root, path = stored
    at = ("--results", root)
    assert "choose from csv, parquet, md" in refusal(call("export", "latest", *at, "--format", "xlsx"))
    assert f"did you mean {path.name}" in refusal(call("export", path.name[:-1], *at))
    assert "name it with --out" in refusal(call("export", path.name, trained_run.name, *at))
    assert "take csv or md" in refusal(call("export", "latest", *at, "--format", "parquet", "--out", "-"))
    assert "cannot write" in refusal(call("export", "latest", *at, "--out", path / "rows.jsonl" / "x.csv"))
    (path / "rows.jsonl").write_text('{"schema": 2}\n')
    assert "update dmabench" in refusal(call("export", path.name, *at))
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    assert "pip install pyarrow" in refusal(call("export", "latest", *at, "--format", "parquet"))
