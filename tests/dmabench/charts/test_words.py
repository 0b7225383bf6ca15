"""Charts in words: every named line with its two ends, in the units of its axes."""

from matplotlib.figure import Figure

from dmabench.charts import kernels
from dmabench.charts.words import MOST, ends, times


def test_ratios_on_an_axis():
    assert [times(ratio) for ratio in (4, 1, 0.5, 0.25, 0.7, 1.2)] == ["4x", "1x", "1/2x", "1/4x", "0.7x", "1.2x"]


def test_lines_are_told_by_their_ends():
    axes = Figure().add_subplot()
    axes.plot([1, 2, 4], [3.0, 9.0, 0.5], label="mha")
    axes.plot([2], [float("nan")], label="nothing")
    axes.plot([1, 2], [float("nan"), 7.0], label="dma")
    axes.plot([1, 2], [1.0, 1.0])
    axes.set_xticks([1, 2, 4], ["1k", "2k", "4k"])
    assert ends(axes.figure) == "Lines: mha 3.00 at 1k to 0.500 at 4k; dma 7.00 at 2k."
    assert ends(Figure()) == ""


def test_values_lie_across_where_words_stand_along_the_y_axis():
    axes = Figure().add_subplot()
    axes.plot([2.9, 3.5], [0, 2], label="its own")
    axes.plot([3.1], [1], label="dma")
    axes.set_yticks([0, 1, 2], ["mha", "dma", "swa"])
    assert ends(axes.figure) == "Lines: its own 2.90 at mha to 3.50 at swa; dma 3.10."


def test_panels_have_their_titles_and_long_lists_are_cut():
    figure = Figure()
    for number, axes in enumerate(figure.subplots(1, 2)):
        axes.set_title(f"T = {number}")
        for line in range(MOST - 5):
            axes.plot([1, 2], [1.0, 2.0], label=f"line {line}")
    told = ends(figure)
    assert told.startswith("Lines: T = 0: line 0 1.00 at 1.00 to 2.00 at 2.00;") and "T = 1: line 0" in told
    assert told.endswith(f"; and {MOST - 10} more.")


def test_a_chart_of_times_names_lines_and_lengths(sweep):
    drawn = kernels.draw(sweep, {"commit": "0123456", "versions": "torch 2.11.0"})
    told = ends(drawn["latency-fwd-h16g8d128-iid"])
    assert "dma/flex 0.250 at 8k to 4.00 at 128k" in told and "dense/sdpa-math 40.0 at 8k" in told
