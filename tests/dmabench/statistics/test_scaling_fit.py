"""Power laws and growing leads: what made-up losses were made from comes back, and intervals cover what they should."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.statistics.scaling_fit import over_documents, power_law

SIZES = (7e6, 13e6, 30e6)


@given(st.floats(0.01, 0.5), st.floats(1, 50), st.floats(1e-3, 1e3))
def test_an_exact_law_comes_back_whatever_the_unit(exponent, scale, unit):
    fit = power_law([(size * unit, scale * size**-exponent, 0) for size in SIZES])
    assert fit.exponent == pytest.approx((exponent,) * 3, abs=1e-6) and fit.over == "residuals"
    assert fit.at(13e6 * unit) == pytest.approx(scale * 13e6**-exponent)


def test_two_sizes_are_no_law():
    assert power_law([(1e6, 4.0, seed) for seed in range(3)] + [(2e6, 3.9, seed) for seed in range(3)]) is None


def test_intervals_cover_the_exponent_as_often_as_they_say():
    draw, inside = np.random.default_rng(0), {"residuals": 0, "3 seeds": 0}
    for trial in range(400):
        seeds = 1 if trial % 2 else 3
        points = [
            (size, 20 * size**-0.1 * math.exp(draw.normal(0, 0.01)), seed)
            for seed in range(seeds)
            for size in (1e6, 3e6, 1e7, 3e7)
        ]
        fit = power_law(points)
        inside[fit.over] += fit.exponent.low < 0.1 < fit.exponent.high
    assert all(180 <= count <= 199 for count in inside.values()), inside


def test_a_seed_that_lacks_a_size_is_left_out():
    whole = [(size, 20 * size**-0.1, 0) for size in SIZES]
    fit = power_law([*whole, (SIZES[0], 9.0, 1)])
    assert fit.exponent.value == pytest.approx(0.1) and fit.over == "residuals"


def test_a_loss_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        power_law([(1e6, 0.0, 0)])


def test_a_difference_is_found_by_pairs_of_documents_where_documents_differ_more_than_models():
    draw = np.random.default_rng(0)
    tokens = draw.integers(50, 500, 200).astype(float)
    hard = draw.normal(3, 1, 200)
    one, other = tokens * (hard + draw.normal(0.05, 0.1, 200)), tokens * hard
    found = over_documents({0.0: one - other}, tokens)
    assert 0 < found.low < found.value < found.high < 0.1
    assert found.value == pytest.approx((one.sum() - other.sum()) / tokens.sum())


def test_the_slope_of_a_lead_over_log_size():
    draw = np.random.default_rng(0)
    tokens = np.full(300, 100.0)
    leads = {math.log(size): 0.02 * math.log(size) * tokens + draw.normal(0, 1, 300) for size in SIZES}
    found = over_documents(leads, tokens)
    assert found.low < 0.02 < found.high and found.high - found.low < 0.01


def test_documents_must_be_the_same():
    with pytest.raises(ValueError, match="at least 2"):
        over_documents({0.0: np.zeros(5)}, np.ones(4))
