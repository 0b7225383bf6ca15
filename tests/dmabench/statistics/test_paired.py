"""Paired tests against counting all outcomes, and Holm's correction against its definition."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.statistics.paired import holm, mcnemar, p_value

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(one=st.integers(0, 12), other=st.integers(0, 12))
def test_mcnemar_counts_the_coins_that_fall_at_least_as_far(one, other):
    n = one + other
    tails = sum(math.comb(n, k) for k in range(min(one, other) + 1))
    assert mcnemar(one, other) == pytest.approx(min(1, 2 * tails / 2**n))
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_of_thousands():
    """Where 2**n is beyond floating point; compared with the normal approximation."""
    for one, other in ((5200, 4800), (900, 1100)):
        z = (abs(one - other) - 1) / math.sqrt(one + other)
        assert mcnemar(one, other) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)
    assert mcnemar(3000, 3000) == 1


def test_accuracies_are_compared_on_examples_that_one_alone_got_right():
    one, other = [1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]
    assert p_value(one, other) == mcnemar(6, 1)
    assert p_value(one, one) == 1


@given(differences=st.lists(st.floats(-3, 3), min_size=2, max_size=9))
def test_likelihoods_are_compared_by_flipping_signs(differences):
    other = [-7.5] * len(differences)
    one = [-7.5 + d for d in differences]
    sums = [
        abs(sum(s * (a - b) for s, a, b in zip(signs, one, other, strict=True)))
        for signs in product((1, -1), repeat=len(one))
    ]
    exact = sum(total >= sums[0] * (1 - 1e-12) for total in sums) / len(sums)
    near = abs(sums[0]) < 1e-9 or any(0 < abs(total - sums[0]) < 1e-9 for total in sums)
    if not near:
        assert p_value(one, other) == pytest.approx(exact, abs=0.02)


def test_pairs_stand_for_their_first_number():
    one, other = [[-10.0, 5], [-8.0, 4], [-9.5, 6]], [[-11.0, 5], [-9.0, 4], [-10.0, 6]]
    assert p_value(one, other) == p_value([a for a, _ in one], [b for b, _ in other])


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="same examples: 2 scores and 1"):
        p_value([1, 0], [1])
    with pytest.raises(ValueError, match="0 scores"):
        p_value([], [])
    assert math.isnan(p_value([-math.inf, -1.0], [-2.0, -1.0]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.4]) == [0.4]


@given(SHARES)
def test_holm_is_between_the_p_and_bonferroni_and_keeps_the_order(ps):
    adjusted = holm(ps)
    for p, q in zip(ps, adjusted, strict=True):
        assert p <= q <= min(1, len(ps) * p) or q == pytest.approx(min(1, len(ps) * p))
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    assert [adjusted[at] for at in order] == sorted(adjusted)
