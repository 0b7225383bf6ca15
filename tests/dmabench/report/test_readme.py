"""The README's figures are those of the committed rows, and no measured number stands where no rows are named."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.report.readme import description, fill, find_blocks, loose_numbers, write_readme
from dmabench.store import runs

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def written():
    """The README and its charts, made anew."""
    return fill(README, ROOT, "README.md")


def test_the_readme_is_what_its_rows_give(written):
    made = written[0].split("\n")
    differing = [(old, new) for old, new in zip(README.split("\n"), made, strict=False) if old != new]
    assert differing == [] and len(made) == len(README.split("\n")), "run `dmabench report --readme`"


def test_the_readme_s_charts_are_what_its_rows_give(written):
    assert written[1], "the README shows no chart of its rows"
    for name, made in written[1].items():
        stored = (ROOT / name).read_text()
        assert description(stored) == description(made), f"{name}: run `dmabench report --readme`"
        assert len(stored) < 150_000 and "prefers-color-scheme: dark" in stored and f"]({name})" in README


def test_no_measured_number_stands_outside_of_the_blocks():
    assert loose_numbers(README) == []
    # Each block that is taken out of its markers would be found.
    bare = re.sub(r"<!-- /?dmabench:.*?-->", "", README)
    assert len(loose_numbers(bare)) > 10


@pytest.mark.parametrize(
    "text", ["takes 0.4 ms", "is 9x faster", "(0.76x)", "512 MiB", "610 TFLOP/s", "in 12.5 %", "3 s."]
)
def test_a_number_with_a_unit_is_found(text):
    assert len(loose_numbers(f"It {text} here")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`--fail-on 5%`",
        "at T = 8192 and w 1024",
        "p10 to p90",
        "a dense T x T mask",
        "[text](https://host/9x)",
        "<!-- 9x -->",
        "```\n9x\n```",
        "    time 9x\n",
        "torch 2.11, w64s",
        "3 seeds, 16 heads, 13 of 80 cells",
    ],
)
def test_settings_code_and_counts_are_no_measurements(text):
    assert loose_numbers(text) == []


@pytest.fixture
def made(tmp_path, stored):
    """A README beside the made-up run, with a table and a chart still empty."""
    _, run = stored
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "README.md").write_text(
        "before 1\n"
        "<!-- dmabench:times run pass=fwd columns=dma/flex,swa/flex,dma/cuda fields=total_ms,peak_mib -->\nold\n"
        "<!-- /dmabench:times -->\n"
        "```\n<!-- dmabench:example -->\n```\n"
        "<!-- dmabench:chart run chart=speedup-fwd-h16g8d128-iid file=charts/speedup.svg -->\n"
        "<!-- /dmabench:chart -->\n"
        "after\n"
    )
    return tmp_path / "README.md"


def test_a_readme_is_filled_and_filled_again_without_a_change(made):
    first = write_readme(made)
    text = made.read_text()
    assert "| 8192 | 0.500 (512) | 0.250 (512) | 0.200 (512) | UNSUPPORTED | 2.00x |" in text
    assert "| 131072 | 128 (512) | 4.00 (512) | 3.20 (512) |  | 32.0x |" in text and "old" not in text
    assert "commit 0123456" in text and "NVIDIA H100 80GB HBM3" in text and "dense/sdpa-cudnn" in text
    assert "`dmabench kernels --seqlen 8k,32k,128k`" in text and "[run](run)" in text
    assert "slower than dense in no line" in text
    assert "dma/flex 2.00 at 8k to 32.0 at 128k" in text and "](charts/speedup.svg)" in text
    assert text.startswith("before 1\n") and text.endswith("after\n") and "<!-- dmabench:example -->" in text
    assert "<svg" in (made.parent / "charts" / "speedup.svg").read_text()
    assert first.changed == ["times run", "chart run", "charts/speedup.svg"] and first.loose == []
    again = write_readme(made)
    assert again.changed == [] and made.read_text() == text and again.blocks == first.blocks


def test_other_rows_give_another_table_and_another_chart(made):
    write_readme(made)
    rows = made.parent / "run" / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"total_ms": 4.0,', '"total_ms": 400.0,'))
    assert write_readme(made).changed == ["times run", "chart run", "charts/speedup.svg"]
    assert "slower than dense at T 131072, w 1024 (0.320x)" in made.read_text()


def test_what_cannot_be_filled_is_refused_and_nothing_is_written(made, tmp_path):
    text = made.read_text()
    for old, new, told in (
        ("run pass", "gone pass", "line 2: .*gone.* is not a run"),
        ("pass=fwd", "pass=bwd", "no dense row"),
        ("pass=fwd", "colour=red", "no option 'colour'"),
        ("columns=dma/flex,swa/flex,dma/cuda", "", "needs columns="),
        ("total_ms,peak_mib", "total_ms,joy", "'joy'; choose from total_ms"),
        ("chart=speedup-fwd", "chart=other", "has no chart 'other-h16g8d128-iid'; it has latency"),
        ("run chart=", "run run chart=", "takes 1 run, not 2"),
        ("<!-- /dmabench:times -->\n", "", "line 7: a block opens inside of times run"),
        ("<!-- /dmabench:chart -->\n", "", "is missing"),
        ("dmabench:chart run", "dmabench:poem run", "no block 'poem'; choose from times"),
        ("<!-- dmabench:times", "<!-- times", "'times' is closed and was not opened"),
    ):
        assert old in text
        made.write_text(text.replace(old, new))
        with pytest.raises(Refusal, match=told):
            write_readme(made)
        assert "old" in made.read_text() and not (tmp_path / "charts").exists()
    made.write_text(text)
    with open(tmp_path / "run" / "rows.jsonl", "a") as file:
        file.write('{"schema": 1, "cel')
    with pytest.raises(Refusal, match=r"damaged, skipped\. Name a run that is whole"):
        write_readme(made)
    made.write_text("nothing")
    with pytest.raises(Refusal, match="no block to fill"):
        write_readme(made)
    with pytest.raises(Refusal, match="cannot read"):
        write_readme(tmp_path / "none.md")


def test_a_run_of_other_backends_has_no_table(made, row, environment, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(made.parent / "two", "kernels", ["kernels"], {}, environment)
    for heads in (16, 2):
        run.append(row("dense/sdpa-cudnn", heads=heads))
        run.append(row("dma/flex", heads=heads, cell=str(heads)))
    made.write_text(
        f"<!-- dmabench:times two/{run.name} pass=fwd columns=dma/flex -->\n<!-- /dmabench:times -->\n",
    )
    with pytest.raises(Refusal, match="the rows differ in H: choose one of each"):
        write_readme(made)


def test_a_table_may_hold_several_runs_and_distributions(made, row, environment, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    named = []
    for length, ms in ((8192, 1.0), (32768, 4.0)):
        run = runs.Run.start(made.parent / "some", "kernels", ["kernels", str(length)], {}, environment)
        for number, one in enumerate(
            [
                row("dense/sdpa-cudnn", length, 8 * ms),
                row("dma/flex", length, ms),
                row("dma/flex", length, 2 * ms, delta="rising"),
                row("dma/flex", length, None, delta="falling", status="INCORRECT", reason="off"),
            ]
        ):
            run.append({**one, "cell": str(number)})
        named.append(f"some/{run.name}")

    def table(options, names=named):
        text = f"<!-- dmabench:times {' '.join(names)} pass=fwd columns=dma/flex {options} -->\n"
        made.write_text(text + "<!-- /dmabench:times -->\n")
        write_readme(made)
        return [line for line in made.read_text().splitlines() if line.startswith(("|", "Source"))]

    one = table("delta=iid")
    assert one[0] == "| T | dense | dma/flex | speed-up |" and one[2:4] == [
        "| 8192 | 8.00 | 1.00 | 8.00x |",
        "| 32768 | 32.0 | 4.00 | 8.00x |",
    ]
    assert [line.split("`dmabench ")[1] for line in one[4:]] == ["kernels 8192`.", "kernels 32768`."]
    every = table("seqlen=8192")
    assert every[:2] == ["| T | delta | dense | dma/flex | speed-up |", "| ---: | --- | ---: | ---: | ---: |"]
    assert [line.split(" | ")[1:] for line in every[2:5]] == [
        ["iid", "8.00", "1.00", "8.00x |"],
        ["rising", "8.00", "2.00", "4.00x |"],
        ["falling", "8.00", "INCORRECT", " |"],
    ]
    with pytest.raises(Refusal, match=r"one table holds one device and commit, not .* and "):
        other = {**environment, "git": {**environment["git"], "sha": "f" * 40}}
        run = runs.Run.start(made.parent / "some", "kernels", ["kernels"], {}, other)
        run.append(row("dense/sdpa-cudnn"))
        table("", [*named, f"some/{run.name}"])
    with pytest.raises(Refusal, match="takes one run or more, not 0"):
        table("", [])


def test_the_command(made, monkeypatch):
    monkeypatch.chdir(made.parent)
    result = CliRunner().invoke(app, ["report", "--readme"])
    assert result.exit_code == 0 and result.stdout.strip() == "README.md"
    assert "changed: times run, chart run" in result.stderr
    made.write_text(made.read_text() + "It takes 9 ms.\n")
    result = CliRunner().invoke(app, ["report", "--readme", str(made), "--json"])
    assert result.exit_code == 0 and '"changed": []' in result.stdout and ": 9 ms: move it" in result.stderr
    for words in (["a", "b"], ["--out", "x.html"], ["--results", "x"]):
        assert "--readme" in str(CliRunner().invoke(app, ["report", "--readme", *words]).exception)


def test_blocks_are_found_where_they_stand():
    (block,) = find_blocks("a\n<!-- dmabench:chart run/x file=y -->\n\nbody\n\n<!-- /dmabench:chart -->\nb")
    assert (block.asked.runs, block.asked.options, block.body) == (("run/x",), {"file": "y"}, ("", "body", ""))


@pytest.fixture
def scored(tmp_path):
    """A README beside a copy of committed needles: their tables, and a heat map."""
    (run,) = (ROOT / "results/quick/needle").iterdir()
    shutil.copytree(run, tmp_path / "run")
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- dmabench:scores run -->\n<!-- /dmabench:scores -->\n"
        "<!-- dmabench:chart run chart=needle-accuracy file=needle.svg -->\n<!-- /dmabench:chart -->\n"
    )
    return readme


def test_scores_and_a_heat_map_are_those_of_the_rows(scored):
    assert write_readme(scored).changed == ["scores run", "chart run", "needle.svg"]
    text = scored.read_text()
    assert "| kind | attention | 128 | 256* |" in text and "| multi-key | mha | 1.00 |" in text
    assert "- accuracy is on test examples" in text and "`dmabench needle --extrapolate" in text
    assert write_readme(scored).changed == []
    rows = scored.parent / "run" / "rows.jsonl"
    rows.write_text(re.sub(r'"accuracy": [0-9.]+', '"accuracy": 0.5', rows.read_text()))
    assert write_readme(scored).changed == ["scores run", "needle.svg"]  # the words beside the heat map are the same
    assert "| multi-key | mha | 0.50 |" in scored.read_text()


def test_scores_are_of_tasks(made):
    made.write_text("<!-- dmabench:scores run -->\n<!-- /dmabench:scores -->\n")
    with pytest.raises(Refusal, match="run is no run of a task, but of kernels"):
        write_readme(made)
