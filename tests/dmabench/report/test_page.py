import dataclasses
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from dmabench.errors import Refusal
from dmabench.report.kernel_runs import summary
from dmabench.report.page import write_report
from dmabench.store import runs
from dmabench.tasks import registry

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects images, tables outside a scrolling box, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.loose_tables, self.words = [], [], 0, []
        self.tags = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        given = dict(attributes)
        if tag == "img":
            self.images.append(given)
        if tag == "table" and self.open[-1] != ("div", "box"):
            self.loose_tables += 1
        if tag not in VOID:
            self.open.append((tag, given.get("class")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    @property
    def pieces(self):
        """What stands between two tags each, such as the cells of a table."""
        return [word for piece in self.words if (word := " ".join(piece.split()))]


def page(paths, folder):
    text = write_report(paths, folder / "out" / "report.html").read_text()
    return text, Page(text)


def test_a_run_has_its_table_charts_doubts_and_claims(stored, tmp_path):
    _, path = stored
    _, parsed = page([path], tmp_path)
    assert "dma/flex is 32.0 times as fast as dense/sdpa-cudnn" in parsed.text
    assert "16 cells: 13 PASSED, 2 OUT_OF_MEMORY, 1 UNSUPPORTED." in parsed.text
    assert "the CUDA kernels are not built yet" in parsed.text and "0123456" in parsed.text
    assert len(parsed.images) == 3 and parsed.loose_tables == 0
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in parsed.images)
    assert all("dma/flex" in image["alt"] and "forward" in image["alt"] for image in parsed.images)
    assert "kernel-cuda-10x-most-dense" in parsed.text and "NOT_TESTABLE" in parsed.text


def test_losses_and_break_even_lengths_are_shown(tmp_path, environment, row, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path, "kernels", ["kernels"], {}, environment)
    for length, dense, ours in ((1000, 1.0, 2.0), (8000, 64.0, 16.0)):
        run.append(row("dense/sdpa-cudnn", length, dense), None)
        run.append(row("dma/flex", length, ours), None)
    _, parsed = page([run.path], tmp_path)
    assert "Losses and break-even lengths" in parsed.text and "never beyond them" in parsed.text
    assert "dma/flex 1000-8000 1000 0.500x 2000" in " ".join(parsed.pieces)


def test_the_page_stands_alone(stored, tmp_path):
    text, parsed = page([stored[1]], tmp_path)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert not re.search(r"src\s*=\s*[\"'](?!data:)", text) and "url(" not in text and "@import" not in text
    links = re.findall(r"href\s*=\s*[\"'](?!#)([^\"']*)", text)
    assert links and all((tmp_path / "out" / unquote(link)).is_file() for link in links)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert str(tmp_path) not in text


def test_names_with_html_in_them_are_escaped(tmp_path, environment, row, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    evil = "<script>alert(1)</script><img src=x onerror=y>"
    environment = {**environment, "gpus": [{"name": evil}]}
    run = runs.Run.start(tmp_path, "kernels", [evil], {}, environment)
    run.append(row("dma/" + evil.replace("/", ""), device=evil), None)
    run.append(row("dma/flex", total_ms=None, status="RUNTIME_ERROR", reason=evil), None)
    text, parsed = page([run.path], tmp_path)
    assert "<script" not in text and "script" not in parsed.tags
    assert all(image["src"].startswith("data:") for image in parsed.images)
    assert "alert(1)" in parsed.text


def test_no_run_says_which_command_makes_one(tmp_path):
    _, parsed = page([], tmp_path)
    assert "There is no run to show yet" in parsed.text and "dmabench kernels --quick" in parsed.text


def test_damaged_lines_and_unreadable_runs_are_counted_and_named(stored, tmp_path, environment):
    root, path = stored
    with open(path / "rows.jsonl", "a") as file:
        file.write('{"schema": 1, "cel')
    newer = runs.Run.start(root, "kernels", [], {}, environment)
    (newer.path / "manifest.json").write_text('{"schema": 99}')
    _, parsed = page([path, newer.path], tmp_path)
    assert "2 problems while reading" in parsed.text
    assert f"{path.name}/rows.jsonl, line 17: damaged, skipped" in parsed.text
    assert f"{newer.name} was left out" in parsed.text and "update dmabench" in parsed.text
    assert "1 damaged line of this run" in parsed.text


def test_runs_of_two_machines_are_two_sections(stored, tmp_path, environment, row):
    root, path = stored
    other = {**environment, "gpus": [{"name": "NVIDIA A100"}], "git": {"sha": "f" * 40, "dirty": True}}
    second = runs.Run.start(root, "kernels", [], {}, other)
    second.append(row("dma/flex", 131072, 1.0, device="NVIDIA A100"), None)
    _, parsed = page([path, second.path], tmp_path)
    assert "fffffff-dirty" in parsed.text and "0123456" in parsed.text
    # The A100 row has no dense row in its own run, so it must not have borrowed the H100's.
    assert "no dense row to compare with" in parsed.text
    assert "running, so the table may lack cells" in parsed.text


def test_an_unwritable_page_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="--out FILE"):
        write_report([], tmp_path / "file" / "report.html")


def test_summary_says_slower_and_same(row):
    rows = [row("dense/sdpa-flash", total_ms=1.0), row("dma/flex", total_ms=2.0), row("swa/flex", total_ms=1.0)]
    _, slower, same, _ = summary(rows)
    assert "dma/flex is slower, 0.500 times as fast as dense/sdpa-flash" in slower
    assert "swa/flex is as fast as dense/sdpa-flash" in same
    assert summary([]) == ["Nothing was measured."]


def test_rows_are_sorted_failures_marked_and_unmeasured_claims_folded(tmp_path, environment, row, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path, "kernels", ["kernels"], {}, environment)
    run.append(row("dma/flex", 16384, None, status="INCORRECT", reason="dq off"), None)
    for one in (row("dma/flex", 16384, window=2048), row("dma/flex", 8192), row("dense/sdpa-flash", 8192)):
        run.append(one, None)
    text, parsed = page([run.path], tmp_path)
    body = text[text.index("<tbody>") :]
    places = [body.index(words) for words in (">dense/sdpa-flash<", ">8192<", ">16384<", ">INCORRECT[1]<", ">2048<")]
    assert places == sorted(places) and '<tr class="first bad">' in body
    assert "claims not measured yet (NO_ROWS)" in parsed.text and "details" in parsed.tags


def test_the_summary_counts_the_losses(row):
    rows = [row("dense/sdpa-flash", total_ms=1.0), row("dma/flex", total_ms=4.0), row("swa/flex", total_ms=0.5)]
    (sentence,) = [s for s in summary(rows) if s.startswith("Slower")]
    assert "1 of 2 timed cells" in sentence and "dma/flex" in sentence and "0.25" in sentence
    assert not any(s.startswith("Slower") for s in summary(rows[::2]))


@pytest.fixture
def task_run(tmp_path, environment, monkeypatch, trained):
    """(task, rows) -> the folder of a finished run of it."""
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    tasks = {"mqar": trained.MQAR, "patterns": trained.PATTERNS, "needle": trained.NEEDLE}
    monkeypatch.setattr(registry, "get", tasks.__getitem__)

    def store(task, rows):
        run = runs.Run.start(tmp_path / "results", task.name, [task.name, "--seeds", "3"], {}, environment)
        for row in rows:
            run.append({name: value for name, value in row.items() if name != "run"})
        run.finish()
        return run.path

    return store


def test_a_run_of_a_task_has_its_table_charts_notes_and_verdicts(task_run, trained, tmp_path):
    make, task = trained.made_up, trained.MQAR
    rows = [
        make(task, kind, accuracy, seqlen=2048, window=512, seed=seed, total=32_000)
        for kind, accuracy in (("mha", 0.99), ("swa", 0.3), ("mla", 0.5), ("nsa", 0.6), ("dma", 0.8))
        for seed in range(3)
    ]
    _, parsed = page([task_run(task, rows)], tmp_path)
    assert (
        parsed.text.index("Recall") < parsed.text.index("Sparse patterns") < parsed.text.index("Needles in haystacks")
    )
    assert "dmabench mqar --seeds 3" in parsed.text and "0.800-0.800" in parsed.text
    assert "interval: the range for several" in parsed.text and "0123456" in parsed.text
    assert [image["alt"].split(";")[0] for image in parsed.images] == [
        "Chart: Recall: accuracy over width of the model"
    ]
    assert "mla 16" in parsed.images[0]["alt"] and parsed.loose_tables == 0
    verdict = parsed.text[parsed.text.index("HOLDSDMA is ahead with 512 pairs at length 2048") :]
    assert "over 3 seeds" in verdict and "against nsa 4" in verdict[:400]


def test_an_undertrained_run_says_so_first_and_gives_no_verdict(task_run, trained, tmp_path):
    rows = [
        trained.made_up(trained.NEEDLE, kind, 0.3, test_len=length)
        for kind in ("mha", "dma")
        for length in (1024, 2048)
    ]
    _, parsed = page([task_run(trained.NEEDLE, rows)], tmp_path)
    needle = parsed.text[parsed.text.index("Needles in haystacks") :]
    assert needle.index("UNDERTRAINED, 4 of 4 rows") < needle.index("MHA, the control, needs 0.9 and reaches 0.300")
    assert len(parsed.images) == 2 and "2k*" in needle
    assert "NOT_SEPARATEDBeyond the training length" in parsed.text


def test_tasks_without_a_run_say_what_to_run(task_run, trained, tmp_path):
    rows = [trained.made_up(trained.PATTERNS, kind, 0.99, pattern="copy") for kind in ("mha", "dma")]
    text, parsed = page([task_run(trained.PATTERNS, rows)], tmp_path)
    names = ("mqar", "patterns", "needle", "train", "scaling", "ablate", "eval", "claims")
    places = [text.index(f'<section id="{name}">') for name in names]
    told = {name: text[at:end] for name, at, end in zip(names, places, places[1:], strict=False)}
    assert "No run yet" not in told.pop("patterns") and "dmabench eval --tasks sample" in told.pop("eval")
    assert all(f"<code>dmabench {name} --preset h100</code>" in words for name, words in told.items())
    assert "There is no run to show yet" not in parsed.text and 'id="run-1"' in text


def test_every_empty_section_has_the_commands_that_fill_it(tmp_path):
    text, parsed = page([], tmp_path)
    commands = {
        "summary": "dmabench kernels --preset h100 --replay",
        "quality": "dmabench kernels --level layer --seqlen 1k --window 64,128,256",
        "kernels": "dmabench kernels --quick",
        "mqar": "dmabench mqar",
        "patterns": "dmabench patterns",
        "needle": "dmabench needle",
        "train": "dmabench train",
        "scaling": "dmabench scaling",
        "ablate": "dmabench ablate",
        "eval": "dmabench eval --tasks sample",
        "mask": "dmabench mask --delta iid,rising,clustered",
        "claims": "dmabench reproduce CLAIM",
        "environment": "dmabench env",
    }
    places = [text.index(f'<section id="{name}">') for name in commands]
    assert places == sorted(places)
    for (name, command), start, end in zip(commands.items(), places, [*places[1:], len(text)], strict=True):
        assert f"<code>{command}</code>" in text[start:end], name
    assert "measure it: dmabench mqar --pairs 512" in parsed.text  # each claim, too


def test_layer_time_against_quality_is_the_first_chart_with_the_commands_of_both_runs(
    task_run, trained, tmp_path, environment, row
):
    layer = {"level": "layer", "device": "Made-up GPU"}
    timed = runs.Run.start(tmp_path / "results", "kernels", ["kernels", "--level", "layer"], {}, environment)
    timed.append(row("dense/sdpa-cudnn", 2048, 8.0, **layer))
    for window, ms in ((512, 2.0), (1024, 4.0)):
        timed.append(row("dma/cuda", 2048, ms, window=window, **layer))
    timed.finish()
    make, task = trained.made_up, trained.MQAR
    rows = [make(task, "mha", 0.99), make(task, "dma", 0.985, window=512), make(task, "dma", 0.99, window=4096)]
    text, parsed = page([timed.path, task_run(task, rows)], tmp_path)
    assert (
        "Headline, forward, mqar, T 2k, Made-up GPU: 4x at w 512, with 0.985 beside MHA's 0.99 (margin 0.01)"
        in parsed.text
    )
    assert parsed.images[0]["alt"].startswith("Chart: Layer time against quality: forward, recall")
    section = text[text.index('<section id="quality">') : text.index("<h2>Kernels on")]
    for command in ("dmabench kernels --level layer", "dmabench mqar --seeds 3"):
        assert f"<code>{command}</code>" in section
    assert "1 scored settings have no time" in section and "--seqlen 2048 --window 512,4096" in section
    assert (tmp_path / "out" / "report-files" / "quality" / "quality-mqar-fwd-h16g8d128.png").exists()


def test_the_environment_has_a_line_for_each_run(stored, tmp_path, environment):
    root, path = stored
    other = {**environment, "git": {"sha": "f" * 40, "dirty": True}, "gpus": [], "versions": {"torch": "2.12.0"}}
    second = runs.Run.start(root, "kernels", [], {}, other)
    text, _ = page([path, second.path], tmp_path)
    told = Page(text[text.index('<section id="environment">') : text.index("</main>")]).text
    assert "dmabench 0.1.0, torch 2.11.0, triton 3.6.0" in told and "580.1" in told and "Some CPU, 2 cores" in told
    assert "fffffff-dirty" in told and "torch 2.12.0" in told and "still being written" in told


def test_a_task_that_is_gone_and_a_cell_with_html_in_it_break_nothing(task_run, trained, tmp_path, monkeypatch):
    evil = "<script>alert(1)</script>"
    rows = [trained.made_up(trained.MQAR, "mha", None, status="RUNTIME_ERROR", reason=evil)]
    path = task_run(trained.MQAR, rows)
    text, parsed = page([path], tmp_path)
    assert "<script" not in text and "alert(1)" in parsed.text and "RUNTIME_ERROR" in parsed.text
    assert "no row passed, so there is no accuracy" in parsed.text

    def gone(name):
        raise ImportError("no module named other")

    other = dataclasses.replace(trained.MQAR, name="other")
    path = task_run(other, [trained.made_up(other, "mha", 0.5, pairs=8, seqlen=64)])
    monkeypatch.setattr(registry, "names", lambda: {"other": "A task of another package."})
    monkeypatch.setattr(registry, "get", gone)
    _, parsed = page([path], tmp_path)
    assert "the task cannot be loaded (ImportError: no module named other)" in parsed.text


def test_rows_of_another_command_are_counted_and_not_shown_as_kernels(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path, "other", ["other"], {}, environment)
    run.append({"task": "lambada_openai", "status": "PASSED", "value": 0.5})
    _, parsed = page([run.path], tmp_path)
    assert "1 rows, which this page has no table for" in parsed.text and "None/None" not in parsed.text
