"""Where a kernel's time and memory go, from rows made up for the test."""

import re

import pytest

from dmabench.charts import costs
from dmabench.charts.data import rows_behind
from dmabench.charts.style import DARK
from dmabench.report.files import _drawn

ABOUT = {"commit": "0123456", "versions": "torch 2.11.0"}


@pytest.fixture
def rows(sweep):
    """The sweep, with a measured roof; dma/flex plans 0.02 ms, and 0.1 ms of its whole call is in no part."""
    told = {"roof_tflops": 800.0, "executed_tflops": 300.0}
    return [
        {**one, **told, "kernel_ms": one["total_ms"] - 0.13} if one["backend"] == "flex" else {**one, **told}
        for one in sweep
        if one["status"] == "PASSED"
    ]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_a_figure_has_the_parts_the_density_the_roof_and_the_memory(rows):
    ((stem, figure),) = costs.draw(rows, ABOUT).items()
    assert stem == "costs-fwd-h16g8d128-iid"
    titles = ["parts of a call, T 128k (ms)", "speed-up against density", "executed TFLOP/s below the roof"]
    assert list(panels(figure)) == [*titles, "peak memory (MiB)"]
    words = " ".join(text.get_text() for text in figure.texts)
    assert "forward" in words and "NVIDIA H100" in words and "0123456" in words and "n = 50" in words
    assert len(rows_behind(figure)) == len(rows)


def test_the_parts_of_a_bar_add_up_to_the_whole_call(rows):
    (figure,) = costs.draw(rows, ABOUT).values()
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["swa/flex, w 1k", "dma/flex, w 1k"]
    by_part = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert list(by_part) == ["importance", "plan", "kernel", "rest of the call"]
    (_, importance), (_, plan), (_, kernel), (_, rest) = by_part.values()
    assert (importance, plan, rest) == pytest.approx((0.01, 0.02, 0.1)) and importance + plan + kernel + rest == 4.0


def test_density_has_its_bound_and_the_break_even(rows):
    (figure,) = costs.draw(rows, ABOUT).values()
    axes = panels(figure)["speed-up against density"]
    mine = next(line for line in axes.lines if line.get_label() == "dma/flex")
    assert len(mine.get_xdata()) == 3 and list(mine.get_ydata()) == pytest.approx([2.0, 8.0, 32.0])
    bound = next(line for line in axes.lines if line.get_color() == "#bdbdbd")
    assert list(bound.get_ydata()) == pytest.approx([1 / x for x in bound.get_xdata()])
    assert any(list(line.get_ydata()) == [1, 1] for line in axes.lines)


def test_panels_without_data_are_left_out_and_so_are_layers_and_dense_alone(row):
    one = [row("dense/sdpa-cudnn", 8192, 2.0), row("dma/cuda", 8192, 1.0, plan_ms=None, peak_mib=None)]
    assert costs.draw(one, ABOUT) == {}
    assert costs.draw([{**line, "level": "layer"} for line in one], ABOUT) == {}
    assert costs.draw(one[:1], ABOUT) == {} and costs.draw([], ABOUT) == {}
    two = [*one, row("dense/sdpa-cudnn", 16384, 8.0), row("dma/cuda", 16384, 2.0, plan_ms=None)]
    (figure,) = costs.draw(two, ABOUT).values()
    assert list(panels(figure)) == ["speed-up against density", "peak memory (MiB)"]


def test_every_colour_has_one_for_dark_pages(rows):
    (figure,) = costs.draw(rows, ABOUT).values()
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", _drawn(figure, "svg").decode())) <= set(DARK)
