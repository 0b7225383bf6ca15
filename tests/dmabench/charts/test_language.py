"""The chart of language models, and what the harness makes of a task without a control."""

from dmabench.charts.language import draw
from dmabench.summaries.controls import UNDERTRAINED, choose_rates, judged, rate_key
from dmabench.tables.tasks import notes, tables
from dmabench.tasks.language import TASK


def row(attention, loss=3.0, **changes):
    settings = dict.fromkeys((axis.name for axis in TASK.axes), None)
    settings |= {"size": "tiny", "data": "synthetic", "seqlen": 64, "lr": 1e-3, "seed": 0, "tokens": 1e6}
    window = 16 if attention in ("swa", "dma") else None
    scores = {"perplexity": 20.0, "bits_per_byte": 1.5, "accuracy": 0.3, "validation_loss": loss, "test_loss": 3.0}
    positions = {"position_from": [0, 16, 32], "position_bits_per_byte": [2.0, 1.6, 1.5]}
    about = {"task": "train", "status": "PASSED", "device": "cpu", "note": None, "chance": 0.002}
    return {**settings, **scores, **positions, **about, "attention": attention, "window": window, **changes}


def test_a_model_alone_needs_no_control():
    told = judged(TASK, [row("dma")])
    assert [one["status"] for one in told] == ["PASSED"]
    assert not any(UNDERTRAINED in note for note in notes(TASK, [row("dma")]))


def test_the_rate_with_the_lowest_validation_loss_is_chosen():
    rows = [row("mha", 3.0, lr=1e-3), row("mha", 2.5, lr=3e-3, accuracy=0.1), row("mha", 2.9, lr=1e-2)]
    assert choose_rates(TASK, rows)[rate_key(TASK, rows[0])] == 3e-3
    assert [one["chosen"] for one in judged(TASK, rows)] == [False, True, False]
    (note,) = (note for note in notes(TASK, rows) if "learning rate" in note)
    assert "chosen on validation loss" in note and "mha 0.003 (2.500)" in note


def test_skipped_text_is_told_once_and_no_interval_is_claimed():
    rows = [row(kind, note="1 part of the text skipped: a line") for kind in ("mha", "dma")]
    told = notes(TASK, rows)
    assert told.count("1 part of the text skipped: a line") == 1
    assert not any("interval" in note for note in told)
    (table,) = tables(TASK, rows)
    headers = [str(column.header) for column in table.columns]
    assert "perplexity" in headers and "bits per byte" in headers and "interval" not in headers


def test_a_line_for_each_attention_averaged_over_seeds():
    rows = [row("mha"), row("dma"), row("dma", seed=1, position_bits_per_byte=[3.0, 2.6, 2.5])]
    ((stem, figure),) = draw(TASK, rows, {}).items()
    assert stem == "train-position"
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert lines["mha"] == [2.0, 1.6, 1.5] and lines["dma"] == [2.5, 2.1, 2.0]


def test_a_figure_for_each_length():
    rows = [row("mha"), row("mha", seqlen=128)]
    assert list(draw(TASK, rows, {})) == ["train-position", "train-position-n2"]
