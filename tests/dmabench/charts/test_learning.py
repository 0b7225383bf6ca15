"""Held-out loss over tokens of training, from rows made up for the test."""

import pytest

from dmabench.charts import learning
from dmabench.charts import tasks as task_charts
from dmabench.charts.words import ends
from dmabench.tasks import registry
from dmabench.tasks.language import TASK

TOKENS = [1000, 2000, 3000]


def row(attention, losses=(5.0, 4.0, 3.5), task="train", **changes):
    settings = dict.fromkeys((axis.name for axis in TASK.axes), None)
    settings |= {"size": "tiny", "data": "synthetic", "seqlen": 64, "lr": 1e-3, "seed": 0, "tokens": 3000.0}
    scores = {"accuracy": 0.3, "validation_loss": losses[-1], "test_loss": losses[-1], "bits_per_byte": 1.5}
    scores |= {"position_from": [0, 16], "position_bits_per_byte": [2.0, 1.6]}
    about = {"task": task, "status": "PASSED", "device": "cpu", "curve_tokens": TOKENS, "curve_loss": list(losses)}
    window = 16 if attention in ("swa", "dma") else None
    return {**settings, **scores, **about, "attention": attention, "window": window, **changes}


def named(figure):
    (axes,) = figure.axes
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_a_line_for_each_attention_with_its_name_at_its_end():
    figures = task_charts.draw(TASK, [row("mha"), row("dma", (5.0, 4.5, 4.2))], {"commit": "0123456"})
    assert list(figures) == ["train-position", "train-curve"]
    figure = figures["train-curve"]
    lines = named(figure)
    assert list(lines["dma"].get_xdata()) == TOKENS and list(lines["dma"].get_ydata()) == [5.0, 4.5, 4.2]
    assert lines["mha"].get_color() == "#000000" and lines["mha"].get_marker() != lines["dma"].get_marker()
    assert {text.get_text() for text in figure.axes[0].texts} == {"mha", "dma"}
    assert ends(figure) == "Lines: mha 5.00 at 1k to 3.50 at 3k; dma 5.00 at 1k to 4.20 at 3k."
    footer = " ".join(text.get_text() for text in figure.texts)
    assert "size tiny" in footer and "0123456" in footer and "dashed" not in footer and "thin" not in footer


def test_rates_have_lines_of_their_own_and_the_chosen_one_is_solid():
    rows = [row("dma", lr=1e-3), row("dma", (4.0, 3.0, 2.5), lr=3e-3)]
    figure = learning.draw(TASK, rows, {})["train-curve"]
    lines = named(figure)
    assert {name: line.get_linestyle() for name, line in lines.items()} == {"dma lr 0.001": "--", "dma lr 0.003": "-"}
    assert "dashed: rates that validation did not choose" in figure.texts[2].get_text()


def test_seeds_are_thin_lines_and_their_mean_is_the_line():
    rows = [row("dma", (5.0 + seed, 4.0, 3.5 + seed), seed=seed) for seed in range(2)]
    figure = learning.draw(TASK, rows, {})["train-curve"]
    assert list(named(figure)["dma"].get_ydata()) == [5.5, 4.0, 4.0]
    thin = [list(line.get_ydata()) for line in figure.axes[0].lines if line.get_label().startswith("_")]
    assert thin == [[5.0, 4.0, 3.5], [6.0, 4.0, 4.5]] and "thin: each seed" in figure.texts[2].get_text()
    assert "2 seeds" in figure.texts[3].get_text()


def test_where_names_are_too_many_those_of_chosen_rates_are_written():
    rates = [1e-3 * 2**at for at in range(learning.MOST)]
    rows = [row(kind, (5.0, 4.0, 3.0 + rate), lr=rate) for kind in ("mha", "dma") for rate in rates]
    figure = learning.draw(TASK, rows, {})["train-curve"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"mha lr 0.001", "dma lr 0.001"}
    assert len(named(figure)) == 2 * len(rates)


@pytest.mark.parametrize("task", ["train", "scaling"])
def test_sizes_stand_apart(task):
    rows = [row("mha", task=task, size=size) for size in ("7M", "13M")]
    figures = learning.draw(registry.get(task), rows, {})
    assert list(figures) == [f"{task}-curve", f"{task}-curve-n2"]
    assert sorted(figure.texts[1].get_text().split("  ·  ")[0] for figure in figures.values()) == [
        "size 13M",
        "size 7M",
    ]


def test_the_second_stage_is_marked():
    losses = (5.0, 4.0, 3.5, 3.9, 3.4)
    rows = [row("mha", losses, curve_tokens=[1000, 2000, 3000, 4000, 5000], stage2_tokens=2000.0)]
    (axes,) = learning.draw(TASK, rows, {})["train-curve"].axes
    assert "stage 2" in {text.get_text() for text in axes.texts}
    assert list(axes.lines[-1].get_xdata()) == [3000, 3000]


def test_variants_of_an_ablation_are_lines_and_other_tests_of_them_are_none():
    common = {"task": "ablate", "on": "language", "tested": "own"}
    rows = [row("dma", variant="v-learned", **common), row("mha", variant="mha", **common)]
    rows.append(row("dma", variant="v-learned", **{**common, "tested": "mha"}, curve_loss=None, curve_tokens=None))
    figures = task_charts.draw(registry.get("ablate"), rows, {})
    assert list(figures) == ["ablate-language-score", "ablate-curve"]
    lines = named(figures["ablate-curve"])
    assert set(lines) == {"v-learned", "mha"} and lines["mha"].get_color() == "#000000"


def test_older_rows_without_a_curve_have_no_chart():
    assert learning.draw(TASK, [row("mha", curve_loss=None), row("dma", curve_loss=[])], {}) == {}
