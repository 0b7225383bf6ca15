"""What a report does with runs that are damaged, newer, unfinished or hostile: it is written, and says so."""

import html
import json
import re

import pytest

from dmabench.report.page import write_report
from dmabench.report.reading import read
from dmabench.store import runs
from dmabench.tasks import registry

EVIL = "<script>alert(1)</script><img src=x onerror=y>"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])


@pytest.fixture
def make(tmp_path, environment):
    """(rows, ...) -> the folder of a run of kernels with those rows."""

    def made(rows, command="kernels", argv=("kernels",), finish=True, **more):
        run = runs.Run.start(tmp_path / "results", command, list(argv), {}, {**environment, **more})
        for row in rows:
            run.append(row)
        if finish:
            run.finish()
        return run.path

    return made


def shown(tmp_path, *paths):
    """The page, and its text."""
    page = write_report(paths, tmp_path / "report.html").read_text()
    text = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return page, html.unescape(" ".join(re.sub("<[^>]+>", " ", text).split()))


def cells(row, *totals):
    return [row("dense/sdpa-cudnn", 8192 * 2**at, total) for at, total in enumerate(totals)]


@pytest.mark.parametrize(
    ("field", "value"), [("total_ms", "fast"), ("seqlen", "8k"), ("status", None), ("p90_ms", [1]), ("window", {})]
)
def test_a_row_with_a_field_of_another_kind_is_skipped_counted_and_named(make, row, tmp_path, field, value):
    path = make([*cells(row, 1.0), {**row("dma/cuda", 8192, 0.5), field: value}])
    _, text = shown(tmp_path, path)
    assert "1 problem while reading" in text
    assert f"{path.name}, row 2 (cell dma/cuda" in text and f"damaged, skipped: its {field} is" in text
    assert "1 damaged line of this run" in text and "1 cells: 1 PASSED." in text


def test_rows_of_trained_models_may_hold_lists_and_not_words(make, trained):
    good = trained.made_up(trained.MQAR, "dma", 0.9, window=[64, 128])
    path = make([good, {**good, "accuracy": "high"}, {**good, "heads": [1, 2]}], command="mqar")
    ((stored,), problems) = read([path])
    assert len(stored.rows) == 2 and len(problems) == 1 and "row 2" in problems[0] and "'high'" in problems[0]


def test_half_a_line_is_skipped_counted_and_named(make, row, tmp_path):
    path = make(cells(row, 1.0))
    with open(path / "rows.jsonl", "a") as file:
        file.write('{"schema": 1, "function": "dma", "ba')
    _, text = shown(tmp_path, path)
    assert f"{path.name}/rows.jsonl, line 2: damaged, skipped" in text and "1 damaged line of this run" in text


@pytest.mark.parametrize("what", ["rows.jsonl", "manifest.json"])
def test_a_newer_schema_leaves_the_run_out_and_says_what_to_do(make, row, tmp_path, what):
    old, new = make(cells(row, 1.0)), make(cells(row, 1.0))
    if what == "rows.jsonl":
        (new / what).write_text(json.dumps({**row("dma/cuda"), "schema": 2}) + "\n")
    else:
        (new / what).write_text(json.dumps({**json.loads((new / what).read_text()), "schema": 2}))
    page, text = shown(tmp_path, old, new)
    assert f"{new.name} was left out" in text and "schema 2, this one reads 1" in text and "update dmabench" in text
    assert "1 problem while reading" in text and page.count("<h2>Kernels on") == 1


def test_a_run_that_is_still_written_is_shown_as_far_as_it_is(make, row, tmp_path):
    path = make([*cells(row, 1.0), row("dma/cuda", 8192, 0.5)], finish=False)
    with open(path / "rows.jsonl", "a") as file:
        file.write('{"schema": 1, "func')  # the line being written
    _, text = shown(tmp_path, path)
    assert "running , so the table may lack cells" in text and "dma/cuda is 2.00 times as fast" in text
    assert "still being written, or its process was killed" in text[text.index("On what each run ran") :]


def test_a_run_without_rows_or_without_their_file_is_shown(make, tmp_path):
    empty, gone = make([]), make([])
    (gone / "rows.jsonl").unlink()
    _, text = shown(tmp_path, empty, gone)
    assert text.count("Nothing was measured.") == 2 and f"{gone.name}/rows.jsonl is missing" in text


def test_a_folder_that_is_no_run_is_named(tmp_path):
    (tmp_path / "photos").mkdir()
    _, text = shown(tmp_path, tmp_path / "photos")
    assert "photos was left out" in text and "There is no run to show yet" in text


def test_rows_that_no_command_writes_cost_their_own_section_alone(make, row, tmp_path):
    good = make([*cells(row, 1.0), row("dma/cuda", 8192, 0.5)])
    odd = make([{"status": "PASSED", "accuracy": 0.5, "seqlen": 64}], command="mask")
    _, text = shown(tmp_path, good, odd)
    assert f"{odd.name} is not shown: its rows are not what mask writes" in text and "1 problem" in text
    assert "dma/cuda is 2.00 times as fast" in text


def test_names_with_html_in_them_are_escaped_everywhere(make, row, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "get", {"mqar": trained.MQAR}.__getitem__)
    kernels = make(
        [
            *cells(row, 1.0, 4.0),
            row("dma/cuda", 8192, 0.5, device=EVIL),
            row("dma/" + EVIL.replace("/", ""), 8192, 1.0),
        ],
        argv=["kernels", EVIL],
        gpus=[{"name": EVIL, "driver": EVIL}],
        cpu={"model": EVIL, "cores": 2},
        versions={EVIL: EVIL},
        git={"sha": EVIL, "dirty": False},
    )
    models = [
        trained.made_up(trained.MQAR, kind, 0.99, seqlen=2048, vocab=64, device=EVIL, note=EVIL, reason=EVIL)
        for kind in ("mha", "dma")
    ]
    recall = make(models, command="mqar", argv=["mqar", EVIL])
    hostile = tmp_path / "results" / '"><img src=x onerror=y> & #'
    recall.rename(hostile)
    page, text = shown(tmp_path, kernels, hostile)
    assert "<script" not in page and "<img src=x" not in page and "alert(1)" in text
    assert hostile.name in text
    sources = re.findall(r"<img src=\"([^\"]*)\"", page)
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    # The files beside it have safe names, and their Markdown makes no HTML of a name.
    folder = tmp_path / "report-files"
    assert all(re.fullmatch(r"[\w.-]+", part) for path in folder.rglob("*") for part in path.relative_to(folder).parts)
    texts = list(folder.rglob("*.md"))
    assert len(texts) > 8 and not any("<" in re.sub(r"`[^`]*`", "", path.read_text()) for path in texts)


def test_one_run_named_twice_is_read_once_and_equal_names_are_told_apart(make, row, tmp_path):
    path = make(cells(row, 1.0))
    other = tmp_path / "elsewhere" / path.name
    other.parent.mkdir()
    path.rename(other)
    again = make(cells(row, 2.0))
    again.rename(path)
    stored, _ = read([path, path, other])
    assert [one.name for one in stored] == [path.name, f"{path.name}-2"]
    assert [one.rows[0]["total_ms"] for one in stored] == [2.0, 1.0] and stored[1].rows[0]["run"] == stored[1].name
