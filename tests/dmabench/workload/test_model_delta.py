"""Deltas of a trained model in `dmabench kernels`: what they mean for other options, their files, what is refused."""

import io
import json
import sys
from importlib.util import find_spec

import numpy
import pytest
from typer.testing import CliRunner

from dmabench.cli.kernels_models import check_lengths, take_models
from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.tasks.text_importance import read
from dmabench.workload import model_delta
from dmabench.workload.cells import make_cells
from dmabench.workload.inputs import Inputs
from dmabench.workload.model_delta import ModelDelta, parse
from dmabench.workload.presets import CPU

TINY = "model:untrained:tiny"
OPTIONS = ("seqlen", "window", "pass", "backend", "delta", "batch", "heads", "kv_heads", "head_dim", "dtype", "level")


def given(**options):
    return dict.fromkeys(OPTIONS) | options


def test_the_shape_of_the_model_is_that_of_the_run_where_nothing_else_is_said():
    options = given(delta=f"iid, {TINY}:0", heads="8", window="4,8")
    (label,) = models = take_models(options, "synthetic", None)
    assert label.startswith("model:untrained:tiny:0:synthetic@") and options["delta"] == f"iid,{label}"
    assert models[label] == ModelDelta("untrained:tiny", 0, "synthetic", 32768)
    sizes = {name: options[name] for name in ("heads", "kv_heads", "head_dim", "window", "seqlen")}
    assert sizes == {"heads": "8", "kv_heads": "2", "head_dim": "16", "window": "4,8", "seqlen": "8192"}


def test_the_middle_layer_is_the_default():
    assert parse("model:untrained:1.4M", "synthetic")[0].layer == 2
    assert parse("model:untrained:1.4M:3", "synthetic")[0].layer == 3


@pytest.mark.parametrize(
    ("options", "text", "preset", "why"),
    [
        ({"delta": TINY}, None, None, "needs --text FILE"),
        ({"delta": "iid"}, "synthetic", None, "--delta names none"),
        ({}, "synthetic", None, "--delta names none"),
        ({"delta": TINY}, "synthetic", "quick", "--preset quick has shapes of its own"),
        ({"delta": TINY, "kv_heads": "4"}, "synthetic", None, "untrained:tiny has 2, a delta for each"),
        ({"delta": f"{TINY},model:untrained:0.5M"}, "synthetic", None, "has --head-dim 16 and untrained:0.5M 32"),
        ({"delta": f"{TINY}:mha"}, "synthetic", None, "no layer with dynamic mask attention"),
        ({"delta": f"{TINY}:2"}, "synthetic", None, "layer 2 of untrained:tiny has no dma"),
        ({"delta": TINY}, "no-such-text", None, "--text no-such-text: there is no such file"),
    ],
)
def test_refusals(options, text, preset, why):
    with pytest.raises(Refusal, match=why):
        take_models(given(**options), text, preset)


def test_cells_beyond_the_positions_are_refused():
    models = {"model:a:0:b": ModelDelta("a", 0, "b", 100)}
    settings = {**CPU, "delta": "model:a:0:b", "backend": "dma/reference", "window": "8"}
    fits = make_cells({**settings, "seqlen": "100"}, ["dma/reference"], "cpu", 0, dense=False)
    check_lengths(models, fits)
    decoding = make_cells({**settings, "seqlen": "100", "pass": "decode"}, ["dma/reference"], "cpu", 0, dense=False)
    with pytest.raises(Refusal, match="needs 101 tokens, and a has positions for 100"):
        check_lengths(models, decoding)


def answer_of(monkeypatch, capsys, asked, out, tokens):
    """What the process of a model answers, in this one."""
    request = {"model": asked.model, "layer": asked.layer, "text": asked.text, "tokens": tokens, "device": "cpu"}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request | {"out": str(out)})))
    model_delta.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_file_is_the_importance_of_that_layer_and_reaches_the_inputs(tmp_path, monkeypatch, capsys):
    options = given(delta=TINY, seqlen="64", backend="dma/reference")
    ((label, asked),) = take_models(options, "synthetic", None).items()
    settings = CPU | {name: value for name, value in options.items() if value}
    (cell,) = make_cells(settings, ["dma/reference"], "cpu", 0, dense=False)
    path = tmp_path / "delta.npy"
    assert answer_of(monkeypatch, capsys, asked, path, 64) == {"refusal": None, "problems": None}
    told = read("untrained:tiny", "synthetic", 64, "cpu").deltas[16, 1]
    assert numpy.array_equal(numpy.load(path), told.numpy())
    assert (Inputs(cell.shape, {label: str(path)}).delta(label, 16) == told).all()


def test_what_the_model_refuses_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "note.txt").write_text("short")
    asked = ModelDelta("untrained:tiny", 0, str(tmp_path / "note.txt"), None)
    answer = answer_of(monkeypatch, capsys, asked, tmp_path / "out.npy", 64)
    assert "fewer than 64: name a longer text" in answer["refusal"]
    monkeypatch.setattr(model_delta, "COMMAND", (sys.executable, "-c", f"print({json.dumps(answer)!r})"))
    with pytest.raises(Refusal, match="fewer than 64: name a longer text"):
        asked.write(tmp_path / "out.npy", 64, "cpu")
    monkeypatch.setattr(model_delta, "COMMAND", (sys.executable, "-c", "raise SystemExit('out of luck')"))
    with pytest.raises(Refusal, match="could not be run: out of luck"):
        asked.write(tmp_path / "out.npy", 64, "cpu")


def test_a_run_with_the_importance_of_a_model(tmp_path, monkeypatch):
    def write(asked, out, tokens, device):  # importing a model's libraries again, in another process, takes long
        numpy.save(out, read(asked.model, asked.text, tokens, device, layers=[asked.layer]).deltas[16, 1].numpy())

    assert find_spec(model_delta.COMMAND[-1]) is not None
    monkeypatch.setattr(ModelDelta, "write", write)
    words = ["kernels", "--delta", f"iid,{TINY}", "--text", "synthetic", "--seqlen", "96", "--backend", "dma/reference"]
    result = CliRunner().invoke(app, [*words, "--no-dense", "--cap", "0.05", "--results", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["PASSED", "PASSED"]
    assert rows[1]["delta"].startswith("model:untrained:tiny:1:synthetic@")
    assert rows[1]["live_keys"] != rows[0]["live_keys"]
    assert "reading 96 tokens of synthetic with untrained:tiny" in result.stderr
    assert [(row["heads"], row["kv_heads"], row["head_dim"], row["window"]) for row in rows] == [(4, 2, 16, 16)] * 2
