import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmabench.statistics.intervals import (
    Estimate,
    difference,
    median_of_blocks,
    ratio_of_sums,
    t_cdf,
    t_interval,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize(
    ("probability", "df", "known"),
    [
        # Tables of Student's distribution.
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.95, 5, 2.015),
        (0.995, 10, 3.169),
        (0.9, 30, 1.310),
        (0.975, 120, 1.980),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(probability, df, known):
    assert t_quantile(probability, df) == pytest.approx(known, abs=6e-4)
    assert t_quantile(1 - probability, df) == pytest.approx(-known, abs=6e-4)


@given(st.floats(0.001, 0.999), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_quantile_and_distribution_are_inverse(probability, df):
    assert t_cdf(t_quantile(probability, df), df) == pytest.approx(probability, abs=1e-9)


def test_wilson_matches_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I.
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.1014, 0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0345, 0.0061, 0.1718), abs=1e-4)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
@settings(max_examples=60, deadline=None)
def test_wilson_holds_the_share_and_is_symmetric(counts):
    correct, total = counts
    value, low, high = wilson(correct, total)
    assert 0 <= low <= value <= high <= 1 and high - low > 0
    mirrored = wilson(total - correct, total)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high))


def test_a_difference_of_shares_matches_published_values():
    # Newcombe, as above, table II, method 10: 56/70 - 48/80.
    found = difference(wilson(56, 70), wilson(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_a_difference_of_differences_is_wider_than_each():
    one = difference(wilson(90, 100), wilson(50, 100))
    two = difference(wilson(70, 100), wilson(60, 100))
    both = difference(one, two)
    assert both.value == pytest.approx(0.3)
    assert both.high - both.low > max(one.high - one.low, two.high - two.low)


def test_t_interval_of_known_values():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert t_interval([0.5, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5)


def test_t_interval_covers_as_often_as_it_says():
    draw = random.Random(1)
    covered = 0
    for _ in range(2000):
        _, low, high = t_interval([draw.gauss(3, 2) for _ in range(3)])
        covered += low <= 3 <= high
    assert 0.935 < covered / 2000 < 0.965


@pytest.mark.parametrize(
    "call",
    [lambda: wilson(1, 0), lambda: wilson(3, 2), lambda: t_interval([1.0]), lambda: t_quantile(1.0, 3),
     lambda: t_quantile(0.5, 0)],
)  # fmt: skip
def test_what_has_no_interval_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_a_ratio_of_sums_over_documents():
    above, below = [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 2.0]
    found = ratio_of_sums(above, below)
    assert found.value == 10 / 6 and 1.0 <= found.low < found.value < found.high <= 2.0
    assert ratio_of_sums(above, below) == found
    same = ratio_of_sums([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert same == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        ratio_of_sums([1.0], [1.0])


def test_a_median_of_blocks_is_covered_where_one_of_single_values_is_not():
    """Blocks of ten values that share an offset: taken for eighty independent values they promise too much."""
    draw, covered = random.Random(1), {"blocks": 0, "values": 0}
    for _ in range(200):
        values = [[offset + draw.gauss(0, 0.3) for _ in range(10)] for offset in (draw.gauss(0, 1) for _ in range(8))]
        for name, blocks in (("blocks", values), ("values", [[value] for block in values for value in block])):
            estimate = median_of_blocks(blocks)
            covered[name] += estimate.low <= 0 <= estimate.high
    assert covered["blocks"] >= 0.9 * 200 and covered["values"] < 0.75 * 200


def test_a_median_of_blocks_of_one_value_is_what_drawing_values_gives():
    draw = random.Random(2)
    values = [draw.gauss(0, 1) for _ in range(21)]
    medians = [statistics.median(draw.choices(values, k=21)) for _ in range(5000)]
    expected = t_quantile(0.975, 20) * statistics.stdev(medians) * (21 / 20) ** 0.5
    estimate = median_of_blocks([[value] for value in values])
    assert estimate.value == statistics.median(values)
    assert estimate.high - estimate.value == pytest.approx(expected, rel=0.15)


def test_a_stray_value_does_not_widen_the_interval_of_a_median():
    steady = [[1.0 + 0.01 * n] for n in range(20)]
    clean, stray = median_of_blocks(steady), median_of_blocks([*steady[:-1], [100.0]])
    assert stray.value == clean.value and stray.high - stray.low < 1.5 * (clean.high - clean.low)
    assert median_of_blocks(steady) == clean


def test_one_block_has_no_interval():
    for blocks in ([[1.0, 2.0]], [], [[1.0], []]):
        with pytest.raises(ValueError, match="at least 2 blocks"):
            median_of_blocks(blocks)
