"""Runs of `dmabench train` on the report's page, from made-up rows whose every number is known."""

import base64

import numpy as np
import pytest

from dmabench.charts.words import ends
from dmabench.cli.tasks_output import print_run
from dmabench.report.held_out import figures, frame_of, held_out
from dmabench.report.page import write_report
from dmabench.store import runs
from dmabench.tasks import registry
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


def test_two_seeds_are_too_few_for_an_interval_over_them():
    """Documents are drawn for the mean of both: differences of 0.1 and 0.3 in every document are 0.2 for sure."""
    rows = [
        row(kind, (loss,) * 4, seed=seed)
        for seed, losses in enumerate(((3.0, 2.9), (3.2, 2.9)))
        for kind, loss in zip(("mha", "dma"), losses, strict=True)
    ]
    _, sparse = lines(rows)
    assert sparse["minus MHA"] == "-0.2000" and sparse["interval"] == "-0.2000 to -0.2000" and sparse["seeds"] == "2"
    assert frame_of(TASK, rows)["apart_over"].dropna().tolist() == ["documents"]


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


def spans(axes):
    """Of each line with an interval, its two ends."""
    return [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"]


def test_the_chart_has_the_numbers_of_the_table():
    rows = [row("mha"), row("dma", (2.9, 3.1, 3.0, 3.0)), row("swa", (2.9, 2.8, 2.9, 2.8))]
    ((stem, figure),) = figures(TASK, rows, {"commit": "0123456"}).items()
    assert stem == "train-held-out"
    losses, apart = figure.axes
    assert [label.get_text() for label in losses.get_yticklabels()] == ["mha", "swa", "dma"]
    frame = frame_of(TASK, rows)
    assert spans(losses) == frame[["loss_low", "loss_high"]].to_numpy().tolist()
    assert spans(apart) == frame[["apart_low", "apart_high"]].to_numpy()[1:].tolist()
    told = [line["interval"].removesuffix(" ~") for line in lines(rows)[1:]]
    assert [f"{low:+.4f} to {high:+.4f}" for low, high in spans(apart)] == told
    assert ends(figure).endswith("minus MHA, paired: swa -0.160; minus MHA, paired: dma 0.010.")
    caption, footer = (text.get_text() for text in figure.texts[2:])
    assert caption == "intervals: 95%, over documents of the text (bootstrap)" and "0123456" in footer


@pytest.mark.parametrize(
    ("seeds", "changes", "caption"),
    [
        (3, {}, "intervals: 95%, over seeds (Student's t)"),
        (2, {}, "intervals: 95%, over documents of the text (bootstrap)"),
        (2, {"document_losses": None}, "no interval: fewer than three seeds, and no documents to draw from"),
    ],
)
def test_the_caption_says_what_intervals_are_over(seeds, changes, caption):
    rows = [row(kind, seed=seed, **changes) for kind in ("mha", "dma") for seed in range(seeds)]
    (figure,) = figures(TASK, rows, {}).values()
    assert figure.texts[2].get_text() == caption
    assert len(spans(figure.axes[0])) == (0 if changes else 2)


def test_more_seeds_of_one_attention_are_told_apart():
    rows = [row("mha"), *(row("dma", seed=seed) for seed in range(3))]
    (figure,) = figures(TASK, rows, {}).values()
    assert "over seeds (Student's t) or, where there are fewer than three, over documents" in figure.texts[2].get_text()


def test_sizes_of_a_scaling_run_are_lines_and_other_tasks_have_no_chart():
    rows = [row(kind, size=size, task="scaling") for size in ("7M", "13M") for kind in ("mha", "dma")]
    (figure,) = figures(registry.get("scaling"), rows, {}).values()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["size 7M, mha", "size 7M, dma", "size 13M, mha", "size 13M, dma"]
    assert "minus MHA, paired: size 7M, dma 0.000;" in ends(figure)
    assert figures(registry.get("ablate"), rows, {}) == {} == figures(TASK, [row("mha")], {})


def test_a_run_leaves_its_charts_in_its_folder(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path, "train", ["train"], {}, environment)
    curve = {"curve_tokens": [1000, 2000], "curve_loss": [4.0, 3.0]}
    rows = [run.append(row(kind, **curve)) for kind in ("mha", "dma")]
    assert print_run(TASK, run, rows, "defaults", as_json=False, interrupted=False, cells=2) == 0
    for name in ("position", "curve", "held-out"):
        for ending in ("png", "svg"):
            assert (run.path / f"train-{name}.{ending}").stat().st_size > 1000


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


def test_a_run_has_both_tables_and_its_charts(page):
    text = page([row("mha"), row("dma", (2.9, 3.1, 3.0, 3.0))])
    section = text[text.index('id="train"') : text.index('id="eval"')]
    assert "Language models" in section and "dmabench train --tokens 1e6" in section
    assert section.index("bits per byte</th>") < section.index("Held-out loss<") < section.index("minus MHA</th>")
    assert section.count('<div class="box" tabindex="0"') == section.count("<table>")
    assert 'alt="Chart: Language: pretraining on text: bits per byte over position' in section
    assert "In it: mha, dma." in section and 'alt="Chart: Held-out loss of each attention' in section
    image = section[section.index("base64,") + len("base64,") :]
    assert b"<svg" in base64.b64decode(image[: image.index('"')])


def test_words_of_a_run_are_escaped(page):
    evil = "<script>alert(1)</script>"
    text = page([row("mha", note=evil), row("dma", seqlen=128, note=evil), row("mha", seqlen=128, data=evil)])
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
