"""Do two models differ on the same examples? Exact tests on pairs, and Holm's correction over tasks."""

import math
from collections.abc import Sequence
from typing import Any

FLIPS = 10_000
"""Random sign flips of a permutation test: its smallest p is 1/10001."""


def p_value(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Two-sided p of "the two models score alike", from their scores on the same examples in the same order.

    Scores of 0 and 1 (accuracies): McNemar's exact test on the examples that one of them alone got right. Other scores
    (log-likelihoods): a permutation test that flips the sign of each example's difference. A score that is a pair
    (log-likelihood, words) stands for its first number: the words are the same for both.

    Raises:
        ValueError: another number of scores, or none.
    """
    if len(one) != len(other) or not one:
        raise ValueError(f"paired tests need the same examples: {len(one)} scores and {len(other)}")
    differences = [_number(a) - _number(b) for a, b in zip(one, other, strict=True)]
    if {_number(score) for score in (*one, *other)} <= {0.0, 1.0}:
        return mcnemar(sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    return _permutation(differences)


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p of McNemar's test (1947), given how many examples one of two models alone got right, and the
    other."""
    n, k = only_one + only_other, min(only_one, only_other)
    tail, term = 1, 1
    for i in range(1, k + 1):
        term = term * (n - i + 1) // i  # n over i
        tail += term
    return min(1.0, 2 * tail / 2**n) if n < 1000 else min(1.0, 2 * math.exp(math.log(tail) - n * math.log(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p values, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def _permutation(differences: list[float]) -> float:
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(values).all():
        return math.nan  # a model that gave a likelihood of 0, or no number at all
    observed = abs(values.sum())
    generator = np.random.default_rng(0)
    at_once = max(1, 5_000_000 // len(values))
    reached = 0
    for start in range(0, FLIPS, at_once):
        signs = generator.integers(0, 2, size=(min(at_once, FLIPS - start), len(values)), dtype=np.int8) * 2 - 1
        # Sums of the same numbers in another order differ by rounding.
        reached += int((np.abs(signs @ values) >= observed * (1 - 1e-12)).sum())
    return (reached + 1) / (FLIPS + 1)


def _number(score: Any) -> float:
    return float(score[0] if isinstance(score, list | tuple) else score)
