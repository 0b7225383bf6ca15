"""Runs of `dmabench train` on the report's page, from made-up rows whose every number is known."""

import base64

import numpy as np
import pytest

from dmabench.report.held_out import held_out
from dmabench.report.page import write_report
from dmabench.store import runs
from dmabench.tasks.document_losses import pack
from dmabench.tasks.language import TASK

TOKENS = [10, 20, 30, 40]


def row(attention, losses=(3.0, 3.0, 3.0, 3.0), **changes):
    """A row as the task stores it; `losses` are nats a token of each document."""
    nll = np.array(losses[: len(TOKENS)]) * TOKENS[: len(losses)]
    settings = dict.fromkeys((axis.name for axis in TASK.axes), None)
    settings |= {"size": "tiny", "data": "synthetic", "seqlen": 64, "lr": 1e-3, "seed": 0, "tokens": 1e6}
    window = 16 if attention in ("swa", "dma") else None
    scores = {"perplexity": 20.0, "bits_per_byte": 1.5, "accuracy": 0.3, "validation_loss": 3.1}
    scores |= {"test_loss": float(nll.sum() / sum(TOKENS[: len(losses)])), "text_key": "text"}
    scores["document_losses"] = pack(nll, np.array(TOKENS[: len(losses)]))
    positions = {"position_from": [0, 16, 32], "position_bits_per_byte": [2.0, 1.6, 1.5]}
    about = {"task": "train", "status": "PASSED", "reason": None, "device": "cpu", "note": None, "chance": 0.002}
    made = {**settings, **scores, **positions, **about, "attention": attention, "window": window, **changes}
    return made | {"cell": f"{attention}-{made['seed']}-{made['seqlen']}-{made['lr']}"}


def lines(rows):
    headers, cells = held_out(TASK, rows).sheet[1:3]
    return [dict(zip(headers, line, strict=True)) for line in cells]


def test_one_seed_is_paired_with_dense_attention_over_documents():
    dense, ahead, even = lines([row("dma", (2.9, 3.1, 3.0, 3.0)), row("mha"), row("swa", (2.9, 2.8, 2.9, 2.8))])
    assert (dense["attention"], dense["held-out loss"], dense["minus MHA"]) == ("mha", "3.0000", "")
    assert (ahead["attention"], ahead["minus MHA"]) == ("swa", "-0.1600")
    low, _, high = ahead["interval"].split()
    assert -0.2 <= float(low) < -0.16 < float(high) <= -0.1
    assert even["attention"] == "dma" and even["minus MHA"] == "+0.0100" and even["interval"].endswith(" ~")
    assert "over seeds" not in dense and dense["validation loss"] == "3.1000"


def test_several_seeds_are_paired_seed_by_seed():
    losses = {0: (3.0, 2.8), 1: (3.2, 3.1), 2: (2.9, 2.6)}
    rows = [
        row(kind, (of[at],) * 4, seed=seed) for seed, of in losses.items() for at, kind in enumerate(("mha", "dma"))
    ]
    dense, sparse = lines(rows)
    assert dense["over seeds"] == "2.9000 to 3.2000" and dense["seeds"] == "3"
    # Differences -0.2, -0.1, -0.3: mean -0.2, deviation 0.1, t(0.975, 2) = 4.3027.
    assert sparse["minus MHA"] == "-0.2000" and sparse["interval"] == "-0.4484 to +0.0484 ~"


def test_no_interval_where_documents_cannot_be_paired():
    _, other_text = lines([row("mha"), row("dma", text_key="other")])
    _, one_document = lines([row("mha", (3.0,)), row("dma", (2.9,))])
    for line, told in ((other_text, "+0.0000"), (one_document, "-0.1000")):
        assert line["minus MHA"] == told and not line.get("interval")


def test_settings_stand_apart_and_rates_are_those_that_validation_chose():
    rows = [row("mha"), row("dma", (2.5,) * 4, seqlen=128), row("mha", (2.6,) * 4, seqlen=128)]
    rows.append(row("mha", (1.0,) * 4, lr=1e-2, validation_loss=9.0))
    found = lines(rows)
    assert [(line[""], line["attention"], line["held-out loss"]) for line in found] == [
        ("T 64", "mha", "3.0000"),
        ("T 128", "mha", "2.6000"),
        ("T 128", "dma", "2.5000"),
    ]


def test_nothing_to_show():
    assert held_out(TASK, []) is None and held_out(TASK, [row("mha", status="RUNTIME_ERROR")]) is None
    alone = held_out(TASK, [row("dma")])
    assert alone.notes == [] and "minus MHA" not in alone.sheet.headers


@pytest.fixture
def page(tmp_path, environment, monkeypatch):
    """rows -> the page of a run that has them."""
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])

    def write(rows):
        run = runs.Run.start(tmp_path / "results", "train", ["train", "--tokens", "1e6"], {}, environment)
        for one in rows:
            run.append(one)
        run.finish()
        return write_report([run.path], tmp_path / "report.html").read_text()

    return write


def test_a_run_has_both_tables_and_the_chart_over_positions(page):
    text = page([row("mha"), row("dma", (2.9, 3.1, 3.0, 3.0))])
    section = text[text.index('id="train"') : text.index('id="eval"')]
    assert "Language models" in section and "dmabench train --tokens 1e6" in section
    assert section.index("bits per byte</th>") < section.index("Held-out loss") < section.index("minus MHA</th>")
    assert section.count('<div class="box" tabindex="0"') == section.count("<table>")
    assert 'alt="Chart: Language: pretraining on text: bits per byte over position' in section
    assert "In it: mha, dma." in section
    image = section[section.index("base64,") + len("base64,") :]
    assert b"<svg" in base64.b64decode(image[: image.index('"')])


def test_words_of_a_run_are_escaped(page):
    evil = "<script>alert(1)</script>"
    text = page([row("mha", note=evil), row("dma", seqlen=128, note=evil), row("mha", seqlen=128, data=evil)])
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
