"""The first chart of a report, from points made up for the test."""

import math

import pandas
import pytest

from dmabench.charts.data import rows_behind
from dmabench.charts.quality import MOST, draw

ABOUT = {"timed": {"commit": "aaaaaaa"}, "scored": {"commit": "bbbbbbb"}}


def panel(seqlen=2048, status="PASSED", better="higher", **fields):
    """MHA, and DMA at two windows of which the larger one is as good."""
    same = {"time_run": "timed", "quality_run": "scored", "task": "mqar", "pass": "fwd", "batch": 1, "heads": 16}
    same |= {"kv_heads": 8, "head_dim": 128, "dtype": "bf16", "delta": "iid", "setting": "", "seqlen": seqlen}
    same |= {"device": "Made-up GPU", "measure": "Recall: accuracy", "better": better, "model": "2 layers", "seeds": 1}
    same |= {"status": status, "margin": 0.01, "bound": math.nan if status != "PASSED" else 0.98, **fields}
    rows = [("mha", math.nan, 8.0, 0.99, 1.0), ("dma", 256.0, 1.0, 0.5, 8.0), ("dma", 512.0, 2.0, 0.985, 4.0)]
    for kind, window, ms, quality, speedup in rows:
        told = {"attention": kind, "name": kind, "window": window, "ms": ms, "quality": quality, "speedup": speedup}
        told |= {
            "low": quality - 0.01,
            "high": min(1.0, quality + 0.01),
            "backend": f"{kind}/x",
            "within": quality > 0.98,
        }
        yield same | told


def words(figure):
    return [text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts)]


def test_a_point_for_each_attention_and_window_and_a_ring_around_the_headline():
    ((stem, figure),) = draw(pandas.DataFrame(panel()), ABOUT).items()
    assert stem == "quality-mqar-fwd-h16g8d128"
    (axes,) = figure.axes
    by_name = {line.get_label(): list(line.get_xdata()) for line in axes.lines if line.get_label()[:1] != "_"}
    assert by_name == {"mha": [8.0], "dma": [1.0, 2.0]} and axes.get_xlabel() == "ms a layer"
    (ring,) = [line for line in axes.lines if line.get_markersize() == 9]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2.0], [0.985])
    assert {"256", "512", "T 2k"} <= set(words(figure)) and axes.get_ylabel() == "accuracy"
    footer = " ".join(text.get_text() for text in figure.texts)
    assert "times aaaaaaa, qualities bbbbbbb" in footer and "Made-up GPU" in footer and "1 seed" in footer
    assert len(rows_behind(figure)) == 3


def test_an_untrained_panel_is_hatched_and_has_no_bound_and_no_ring():
    (figure,) = draw(pandas.DataFrame(panel(status="UNDERTRAINED")), ABOUT).values()
    (axes,) = figure.axes
    assert [patch for patch in axes.patches if patch.get_hatch()]
    assert not [line for line in axes.lines if line.get_markersize() == 9]
    assert "hatched: UNDERTRAINED" in " ".join(text.get_text() for text in figure.texts)


def test_perplexity_says_that_lower_is_better():
    frame = pandas.DataFrame(panel(better="lower", measure="Language: perplexity of held-out text"))
    (figure,) = draw(frame, ABOUT).values()
    assert figure.axes[0].get_ylabel() == "perplexity of held-out text (lower is better)"


@pytest.mark.parametrize(("panels", "figures"), [(MOST, 1), (MOST + 1, 2)])
def test_many_lengths_are_panels_of_as_few_figures_as_hold_them(panels, figures):
    rows = [row for number in range(panels) for row in panel(1024 * (number + 1))]
    drawn = draw(pandas.DataFrame(rows), ABOUT)
    assert len(drawn) == figures and sum(len(figure.axes) for figure in drawn.values()) == panels


def test_no_points_no_figure():
    assert draw(pandas.DataFrame(), ABOUT) == {}
