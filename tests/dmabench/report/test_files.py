"""Charts and tables of a report as files beside the page."""

import csv
import json
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure

from dmabench.charts.data import remember
from dmabench.errors import Refusal
from dmabench.report.files import Files
from dmabench.report.page import write_report
from dmabench.report.parts import chart, table


@pytest.fixture
def drawn():
    """A chart of two points, with the rows behind it."""
    import pandas

    figure = Figure(figsize=(2, 2))
    figure.add_subplot().plot([1, 2], [3, 4])
    figure.text(0, 1, "A title")
    remember(figure, pandas.DataFrame({"x": [1, 2], "y": [3.0, 4.5], "device": ["d", "d"], "gone": [None, None]}))
    return chart("line", figure, "Chart: a [line] <b>.")


def test_a_chart_is_four_files_with_its_rows_and_its_command(tmp_path, drawn):
    files = Files(tmp_path / "my page.html")
    told = files.chart("a/run", drawn, ["dmabench kernels --quick"])
    assert [name for name, _ in told["links"]] == ["PNG", "SVG", "CSV", "Markdown"]
    png, svg, rows, text = (tmp_path / unquote(address) for _, address in told["links"])
    assert png.read_bytes()[:4] == b"\x89PNG" and svg.read_text().startswith("<?xml")
    assert list(csv.reader(rows.open())) == [["x", "y", "device"], ["1", "3.0", "d"], ["2", "4.5", "d"]]
    words = text.read_text()
    assert "# A title" in words and "`dmabench kernels --quick`" in words and "](line.svg)" in words
    assert "Of all rows: device d" in words and "| 2 | 4.5 |" in words and "<b>" not in words
    assert told["uri"].startswith("data:image/svg+xml;base64,") and told["commands"] == ["dmabench kernels --quick"]
    assert " " not in told["links"][0][1] and png.is_relative_to(tmp_path / "my page-files" / "a-run")


def test_a_table_is_two_files(tmp_path):
    made = table("Title", ["name", "ms"], [["a|b", "1"], ['"c"', "2"]], ["", ""], ["name"])
    (_, rows), (_, text) = Files(tmp_path / "r.html").table("run", "times", "Title", made, ["dmabench x"], ["a note"])
    assert list(csv.reader((tmp_path / rows).open())) == [["name", "ms"], ["a|b", "1"], ['"c"', "2"]]
    assert "| a\\|b | 1 |" in (tmp_path / text).read_text() and "- a note" in (tmp_path / text).read_text()


def test_equal_names_do_not_overwrite_each_other(tmp_path):
    made = table("Title", ["a"], [["1"]], [""], [])
    files = Files(tmp_path / "r.html")
    found = [files.table(run, "times", "Title", made, [])[0][1] for run in ("a b", "a b", "a-b")]
    assert found == ["r-files/a-b/times.csv", "r-files/a-b/times-2.csv", "r-files/a-b-2/times.csv"]


def test_files_of_an_earlier_report_go_and_everything_else_stays(tmp_path):
    made = table("Title", ["a"], [["1"]], [""], [])
    first = Files(tmp_path / "r.html")
    first.table("old", "times", "Title", made, [])
    first.table("kept", "times", "Title", made, [])
    first.close([])
    folder = tmp_path / "r-files"
    (folder / "kept" / "mine.txt").write_text("not the report's")
    (tmp_path / "outside.csv").write_text("not the report's")
    listed = json.loads((folder / "files.json").read_text())
    listed["files"][0]["files"].append("../outside.csv")
    (folder / "files.json").write_text(json.dumps(listed))
    second = Files(tmp_path / "r.html")
    second.table("kept", "other", "Title", made, [])
    second.close([])
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert left == ["files.json", "index.md", "kept/mine.txt", "kept/other.csv", "kept/other.md"]
    assert (tmp_path / "outside.csv").exists() and not (folder / "old").exists()


def test_a_damaged_list_of_files_deletes_nothing(tmp_path):
    (tmp_path / "r-files").mkdir()
    (tmp_path / "r-files" / "files.json").write_text('{"files": [{"fi')
    Files(tmp_path / "r.html").close(["- **Kernels**: none."])
    assert "- **Kernels**: none." in (tmp_path / "r-files" / "index.md").read_text()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "r-files").write_text("a file")
    with pytest.raises(Refusal, match="--out FILE"):
        Files(tmp_path / "r.html").table("run", "times", "Title", table("Title", ["a"], [], [], []), [])


def test_every_chart_and_table_of_a_page_has_its_files_in_the_index(stored, tmp_path):
    page = write_report([stored[1]], tmp_path / "r.html").read_text()
    listed = json.loads((tmp_path / "r-files" / "files.json").read_text())["files"]
    stems = {(one["run"], name.rpartition("/")[2]) for one in listed for name in one["files"]}
    run, panel = stored[1].name, "fwd-h16g8d128-iid"
    for kind in ("latency", "speedup"):
        assert {(run, f"{kind}-{panel}.{form}") for form in ("png", "svg", "csv", "md")} <= stems
    assert {
        (run, "times.csv"),
        (run, "times.md"),
        ("claims", "claims.csv"),
        ("environment", "environment.csv"),
    } <= stems
    assert all((tmp_path / "r-files" / name).stat().st_size for one in listed for name in one["files"])
    assert page.count("<figcaption") == 3 and f"latency-{panel}.png" in page
    assert page.count("<code>dmabench kernels --seqlen 8k,32k,128k</code>") == 4  # the run's heading, and each chart
    rows = list(csv.DictReader((tmp_path / "r-files" / run / f"latency-{panel}.csv").open()))
    assert {row["id"] for row in rows} >= {"dma/flex", "dense/sdpa-cudnn"} and rows[0]["total_ms"]
    index = (tmp_path / "r-files" / "index.md").read_text()
    assert index.index("- **Kernels**") < index.index(f"## {run}") < index.index("times.csv")
