"""Many distributions of importance in one chart: a mark for each backend, and what failed in words."""

import pytest

from dmabench.charts import costs, kernels
from dmabench.charts.words import ends

ABOUT = {"commit": "0123456", "versions": "torch 2.11.0"}
DELTAS = ("constant", "mine", "iid", "rising")


@pytest.fixture
def rows(row):
    """Two lengths and four distributions, of which one is not ours; dma/cuda is wrong for one of them."""
    found = []
    for length in (8192, 32768):
        found.append(row("dense/sdpa-cudnn", length, 4.0))
        for number, delta in enumerate(DELTAS):
            found.append(row("dma/triton", length, 2.0 + number / 10, delta=delta))
            wrong = {"status": "INCORRECT", "reason": "off"} if delta == "rising" else {}
            found.append(row("dma/cuda", length, None if wrong else 1.0, delta=delta, **wrong))
    return found


def test_they_share_a_chart_and_the_first_has_those_over_length(rows):
    drawn = kernels.draw(rows, ABOUT)
    assert list(drawn) == ["latency-fwd-h16g8d128-iid", "speedup-fwd-h16g8d128-iid", "deltas-fwd-h16g8d128"]
    figure = drawn["deltas-fwd-h16g8d128"]
    assert [axes.get_title() for axes in figure.axes] == ["T 8192, w 1024", "T 32768, w 1024"]
    for axes in figure.axes:
        assert axes.yaxis.get_major_formatter().format_ticks(range(4)) == ["iid", "rising", "constant", "mine"]
        marks = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(marks) == ["dma/triton", "dma/cuda"]
        assert list(marks["dma/cuda"].get_ydata()) == [0, 2, 3] and list(marks["dma/cuda"].get_xdata()) == [4.0] * 3
        (said,) = axes.texts
        assert said.get_text() == "dma/cuda: INCORRECT" and said.get_position()[1] == 1
        assert axes.get_xlim()[0] < 1 < 4 < axes.get_xlim()[1]
    assert "T 8192, w 1024: dma/triton 1.82 at iid to 1.90 at mine" in ends(figure)


def test_one_length_needs_no_chart_over_length(rows):
    rows = [row for row in rows if row["seqlen"] == 8192]
    assert list(kernels.draw(rows, ABOUT)) == ["deltas-fwd-h16g8d128"]


def test_the_costs_are_those_of_the_first(rows):
    for row in rows:
        row["plan_ms"] = 0.1
    assert list(costs.draw(rows, ABOUT)) == ["costs-fwd-h16g8d128-iid"]


def test_two_distributions_have_charts_of_their_own(rows):
    rows = [row for row in rows if row["delta"] in (None, "iid", "constant")]
    stems = list(kernels.draw(rows, ABOUT))
    assert "deltas-fwd-h16g8d128" not in stems and len(stems) == 4


def test_what_has_no_speed_up_has_no_such_chart(rows):
    drawn = kernels.draw([row for row in rows if row["function"] != "dense"], ABOUT)
    assert list(drawn) == ["latency-fwd-h16g8d128-iid"]
