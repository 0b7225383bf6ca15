"""Draws that depend on nothing but key, row and slot, and that follow the distributions they promise."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks import random_tokens as draws

ROWS = np.arange(20_000)
DRAWS = {
    "uniform": lambda rows: draws.uniform(1, rows, 5),
    "below": lambda rows: draws.below(1, rows, 5, 7),
    "distinct, sparse": lambda rows: draws.distinct(1, rows, 6, 40),
    "distinct, dense": lambda rows: draws.distinct(1, rows, 6, 7),
    "gumbel": lambda rows: draws.gumbel_top_k(1, rows, np.arange(1.0, 30.0), 3),
    "zipf": lambda rows: draws.zipf(1, rows, 5, 9),
}


def chi_square(observed, shares):
    """The statistic in standard deviations above its mean, for more than a few cells."""
    expected = np.asarray(shares) / np.sum(shares) * np.sum(observed)
    freedom = len(expected) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def test_the_generator_is_splitmix64():
    """The published first outputs for the seeds 0 and 1234567."""
    assert draws.bits(0, np.array([1]))[0] == 0xE220A8397B1DCDAF
    assert draws.bits(1234567, np.arange(1, 4)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_a_million_numbers_are_mixed_as_one_is():
    counters = np.arange(200_000)
    assert draws.bits(5, counters)[-1] == draws.bits(5, counters[-1:])[0]


@pytest.mark.parametrize("name", DRAWS)
def test_a_row_is_the_same_alone_and_in_any_batch(name):
    draw = DRAWS[name]
    together = draw(np.arange(50))
    assert np.array_equal(draw(np.arange(50)[::-1]), together[::-1])
    assert np.array_equal(draw(np.array([7])), together[7:8])
    assert len(np.unique(together, axis=0)) > 40


def test_other_names_are_other_streams():
    keys = [draws.key("mqar", seed, split, "keys") for seed in (0, 1) for split in ("train", "test")]
    assert len({draws.uniform(key, np.arange(1), 1).item() for key in keys}) == 4
    assert draws.key("mqar", 1) == draws.key("mqar", 1)
    assert draws.key("mqar", 1) != draws.key("mqar", "1")


def test_slots_follow_one_another():
    assert np.array_equal(draws.uniform(3, ROWS[:9], 4, first=2), draws.uniform(3, ROWS[:9], 6)[:, 2:])


def test_uniform_and_below_favour_nothing():
    numbers = draws.uniform(2, ROWS, 50)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(chi_square(np.histogram(numbers, 100, (0, 1))[0], np.ones(100))) < 4
    assert abs(chi_square(np.bincount(draws.below(2, ROWS, 50, 37).ravel(), minlength=37), np.ones(37))) < 4
    # Neighbours in a row, and the same slot of neighbouring rows, do not go together.
    for a, b in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5


@pytest.mark.parametrize(("count", "limit"), [(2, 5), (3, 6), (3, 5), (4, 4)])
def test_all_ordered_draws_without_replacement_are_equally_likely(count, limit):
    drawn = draws.distinct(3, ROWS, count, limit)
    number = {outcome: i for i, outcome in enumerate(permutations(range(limit), count))}
    observed = np.bincount([number[tuple(row)] for row in drawn.tolist()], minlength=len(number))
    assert abs(chi_square(observed, np.ones(len(number)))) < 4


@given(st.integers(0, 60), st.integers(1, 120), st.integers(0, 2**64 - 1))
def test_draws_without_replacement_have_no_repeat(count, limit, key):
    count = min(count, limit)
    drawn = draws.distinct(key, ROWS[:30], count, limit)
    assert drawn.shape == (30, count)
    assert all(len(set(row)) == count and set(row) <= set(range(limit)) for row in drawn.tolist())


def test_gumbel_top_k_draws_one_by_one_with_the_weights_left():
    weights = np.array([5.0, 3.0, 1.0, 1.0])
    outcomes = list(permutations(range(4), 2))
    shares = [weights[a] / 10 * weights[b] / (10 - weights[a]) for a, b in outcomes]
    for limit in (2, 8):  # sorted in full, and cut off first: further weights that never win
        padded = np.concatenate([weights, np.full(limit - 2, 1e-12)])
        drawn = draws.gumbel_top_k(4, ROWS, padded, 2)
        observed = np.array([(drawn == outcome).all(1).sum() for outcome in outcomes])
        assert observed.sum() == len(ROWS)
        assert abs(chi_square(observed, shares)) < 4


def test_zipf_follows_its_law():
    drawn = draws.zipf(5, ROWS, 20, 50, exponent=1.2)
    assert abs(chi_square(np.bincount(drawn.ravel(), minlength=50), np.arange(1, 51.0) ** -1.2)) < 4


def test_a_permutation_has_every_number_once():
    order = draws.permutation(6, 1000)
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15
    assert (order != draws.permutation(7, 1000)).any()


def test_fingerprints_tell_tokens_and_order():
    rows = np.array([[1, 2, 3], [1, 3, 2], [1, 2, 4], [1, 2, 3]])
    prints = draws.fingerprint(rows)
    assert prints[0] == prints[3]
    assert len(set(prints.tolist())) == 3
    many = draws.fingerprint(draws.below(8, ROWS, 8, 100))
    assert abs(chi_square(np.bincount((many % 16).astype(int), minlength=16), np.ones(16))) < 4


def test_impossible_draws_are_refused():
    with pytest.raises(ValueError, match="5 distinct numbers from 4"):
        draws.distinct(1, ROWS[:1], 5, 4)
    with pytest.raises(ValueError, match="5 distinct numbers from 4"):
        draws.gumbel_top_k(1, ROWS[:1], np.ones(4), 5)
    with pytest.raises(ValueError, match="below 0"):
        draws.below(1, ROWS[:1], 1, 0)
