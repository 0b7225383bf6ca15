"""`dmabench mask`: rows, table, chart, what is refused."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from dmabench.charts import masks as mask_charts
from dmabench.cli import export, mask
from dmabench.errors import Refusal
from dmabench.kernels.mask_facts import head_facts
from dmabench.store import runs
from dmabench.tables.masks import layout
from dmabench.tasks.downstream import checkpoints
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config
from dmabench.tasks.text_importance import read
from dmabench.workload.inputs import named_delta
from dmabench.workload.masks import distribution_rows

TINY = ("--model", "untrained:tiny", "--text", "synthetic")


@pytest.fixture
def call(tmp_path, monkeypatch):
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    for command in (mask, export):
        command.add_to(app)
    monkeypatch.setenv("DMABENCH_RESULTS", str(tmp_path / "results"))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_help_has_three_examples(call):
    assert call("mask", "--help").stdout.count("dmabench mask") >= 3


def test_a_row_a_head_with_the_importance_that_kernels_would_time(call, tmp_path):
    words = ("--delta", "iid,sawtooth", "--seqlen", "300,512", "--window", "32", "--kv-heads", "2", "--seed", "3")
    result = call("mask", *words, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["delta"], row["seqlen"], row["head"]) for row in rows] == [
        (delta, seqlen, head) for delta in ("iid", "sawtooth") for seqlen in (300, 512) for head in (0, 1)
    ]
    facts = head_facts(named_delta("sawtooth", 1, 2, 512, 32, 3)[0], 32)[1]
    last = rows[-1]
    assert last["lifetimes"] == list(facts.lifetimes) and last["lifetime_p50"] == facts.lifetimes[10]
    for name in ("live_keys", "density", "ties", "alive", "age", "overlap", "tiles_dense", "tiles_in_order"):
        assert last[name] == getattr(facts, name)
    (path,) = (tmp_path / "results").iterdir()
    assert runs.read_rows(path) == (rows, [])
    manifest = runs.read_manifest(path)
    assert (manifest["command"], manifest["status"], manifest["settings"]["seed"]) == ("mask", "finished", 3)
    assert sorted(file.name for file in path.glob("lifetimes*")) == [
        f"lifetimes-t{seqlen}-w32.{form}" for seqlen in (300, 512) for form in ("png", "svg")
    ]


def test_the_layers_of_a_model(call):
    result = call("mask", *TINY, "--seqlen", "100,200", "--window", "8,16", "--layer", "1", "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["window"], row["seqlen"], row["layer"], row["head"]) for row in rows] == [
        (window, seqlen, 1, head) for window in (8, 16) for seqlen in (100, 200) for head in (0, 1)
    ]
    delta = read("untrained:tiny", "synthetic", 200, "cpu", windows=[8]).deltas[8, 1]
    assert rows[0]["live_keys"] == head_facts(delta[:, :100], 8)[0].live_keys
    assert rows[0]["delta"].startswith("model:untrained:tiny:1:synthetic@") and rows[0]["weights"] == "untrained:tiny"


def test_a_short_text_is_taken_as_it_is_unless_a_length_is_asked_for(call, tmp_path):
    (tmp_path / "note.txt").write_text("To be or not to be.")
    told = ("--model", "untrained:tiny", "--text", tmp_path / "note.txt")
    result = call("mask", *told, "--json")
    assert {json.loads(line)["seqlen"] for line in result.stdout.splitlines()} == {21}
    assert "note: the text ends after 21 tokens" in result.stderr
    assert "fewer than 64" in str(call("mask", *told, "--seqlen", "64").exception)


def test_a_model_is_run_at_the_length_of_its_training(call, tmp_path, monkeypatch):
    torch.manual_seed(0)
    folder = tmp_path / "mine"
    config = model_config("tiny", positions="yarn", trained_positions=64, max_position_embeddings=256)
    DmabenchForCausalLM(config).save_pretrained(folder)
    checkpoints.tokenizer_of(checkpoints.find("untrained:tiny")).save_pretrained(folder)
    told = ("--model", folder, "--text", "synthetic", "--json")
    assert {json.loads(line)["seqlen"] for line in call("mask", *told).stdout.splitlines()} == {64}
    beyond = call("mask", *told, "--seqlen", "100")
    assert beyond.exit_code == 0 and "was trained with sequences of 64 tokens, fewer than 100" in beyond.stderr


def test_the_table_says_once_what_all_share():
    rows = [row for cell in distribution_rows(["iid", "constant"], [512], [64], 2, 0, {}) for row in cell]
    shown = layout(rows)
    assert shown.caption.startswith("T 512 · w 64 · density 23.4% · tiles of 128 queries x 64 keys: dense 20")
    assert shown.headers[:4] == ["delta", "head", "keys", "at end"] and "dense" not in shown.headers
    line = dict(zip(shown.headers, shown.cells[-1], strict=True))
    assert (line["delta"], line["keys"], line["ties"], line["p50"], line["overlap"]) == (
        "constant",
        "512",
        "100%",
        "64",
        "1.00",
    )
    narrow = layout(rows, 60)
    assert max(map(len, map(" ".join, narrow.cells))) <= 60 and "left out to fit 60 columns: p10" in narrow.notes[-1]


def test_a_curve_for_each_head(tmp_path):
    rows = [row for cell in distribution_rows(["iid", "constant"], [512], [64], 2, 0, {}) for row in cell]
    (figure,) = mask_charts.draw(rows, {"commit": "0123456"}).values()
    (axes,) = figure.axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == 21]
    assert [list(curve.get_xdata()) for curve in curves] == [row["lifetimes"] for row in rows]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["iid", "constant"]
    assert any("0123456" in text.get_text() for text in figure.texts)


def test_markdown(call):
    assert call("mask", "--seqlen", "256", "--window", "16").exit_code == 0
    told = call("export", "latest", "--format", "md", "--out", "-").stdout
    assert "| head | keys |" in told and "- ties: of all keys" in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--delta", "idd"), "did you mean iid"),
        (("--delta", "model:untrained:tiny"), "here a model is named with --model"),
        (("--delta", "file:nothing.npy"), "cannot read the file"),
        (("--text", "synthetic"), "--text is of a model: name one with --model DIR"),
        (("--layer", "1"), "--layer is of a model"),
        (("--kv-heads", "0"), "at least 1"),
        (("--seqlen", "1"), "the least is 2"),
        (("--model", "untrained:tiny"), "--model needs --text FILE"),
        ((*TINY, "--delta", "iid"), "--delta is of a distribution"),
        ((*TINY, "--seed", "0"), "--seed is of a distribution"),
        ((*TINY, "--layer", "2"), "layer 2 of untrained:tiny has no dma"),
        ((*TINY, "--seqlen", "64k"), "has positions for 32768 tokens"),
        (("--model", "untrained:tiny:swa", "--text", "synthetic"), "no layer with dynamic mask attention"),
    ],
)
def test_refusals_leave_no_run(call, tmp_path, words, why):
    result = call("mask", *words)
    assert isinstance(result.exception, Refusal) and why in str(result.exception), result.output
    assert not list(tmp_path.glob("results/*"))
