"""Thresholds and quantiles of importance over length, from rows whose every number is known."""

import pytest

from dmabench.charts import tasks as task_charts
from dmabench.charts.words import ends
from dmabench.tasks import registry
from dmabench.tasks.mask_statistics import QUANTILES

LENGTHS = (128, 256)
HEADS = {0: 1.0, 1: 101.0}
"""Head -> its median key at both lengths."""


def row(variant, rise=0.5, **fields):
    """The threshold is `rise` above the median at 128, and twice that at 256."""
    told = {"task": "ablate", "status": "PASSED", "run": "r", "device": "Made-up GPU", "on": "language"}
    told |= {"variant": variant, "tested": "own", "seed": 0, "lr": 1e-3, "window": 32, "seqlen": 128}
    told |= {"test_loss": 3.0, "validation_loss": 3.0, "accuracy": 0.3, "attention": "dma"}
    masks = [
        {"layer": 0, "head": head, "tokens": tokens, "age": 40, "overlap": 0.4}
        | {"threshold": median + rise * tokens / 128, "quantiles": [median + at - 2 for at in range(5)]}
        for tokens in LENGTHS
        for head, median in HEADS.items()
    ]
    return told | {f"mask_{name}": [one[name] for one in masks] for name in masks[0]} | fields


def drawn(rows):
    return task_charts.draw(registry.get("ablate"), rows, {"commit": "0123456"})


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_a_panel_for_each_variant_with_heads_from_their_own_medians():
    figure = drawn([row("v-learned"), row("k-learned", rise=2.0)])["ablate-language-thresholds"]
    first, second = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["v-learned", "k-learned"]
    assert lines(first) == {"threshold": [0.5, 1.0], "median key": [0.0, 0.0]} and lines(second)["threshold"] == [2, 4]
    assert [label.get_text() for label in first.get_xticklabels()] == ["128", "256"]
    bounds = [area.get_paths()[0].vertices[:, 1] for area in first.collections]
    assert [(values.min(), values.max()) for values in bounds] == [(-2, 2), (-1, 1)]


def test_each_head_has_a_line_and_the_mean_is_of_all_seeds():
    rows = [row("v-learned", rise, seed=seed) for seed, rise in enumerate((0.5, 1.5))]
    (axes,) = drawn(rows)["ablate-language-thresholds"].axes
    assert len([line for line in axes.lines if line.get_label().startswith("_")]) == 4
    assert lines(axes)["threshold"] == pytest.approx([1.0, 2.0])


def test_the_chart_is_told_in_words_and_has_a_legend():
    figure = drawn([row("v-learned")])["ablate-language-thresholds"]
    assert ends(figure) == "Lines: threshold 0.500 at 128 to 1.00 at 256; median key 0.000 at 128 to 0.000 at 256."
    (legend,) = figure.legends
    names = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert names == ["threshold", "median key", "1% to 99% of keys", "10% to 90% of keys"]
    assert len(QUANTILES) == 5 and "thin: each" in figure.texts[2].get_text()


def test_nine_panels_stand_in_a_square():
    variants = registry.get("ablate").axes[1].choices[:9]
    axes = drawn([row(variant) for variant in variants])["ablate-language-thresholds"].axes
    assert len({round(one.get_position().x0, 3) for one in axes}) == 3
    assert [bool(one.get_xlabel()) for one in axes] == [False] * 6 + [True] * 3


@pytest.mark.parametrize("missing", ["mask_threshold", "mask_quantiles"])
def test_older_rows_without_thresholds_are_drawn_without_them(missing):
    assert list(drawn([row("v-learned", **{missing: None})])) == ["ablate-language-score", "ablate-language-masks"]
