"""Intervals: of a share, over seeds, of a median and of differences. Closed forms, so that no table waits for scipy."""

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
RESAMPLES = 1000
"""Draws of a bootstrap."""
MEDIAN_RESAMPLES = 200
"""Draws of a bootstrap that only a standard deviation is taken from: that is known to 5% then."""


class Estimate(NamedTuple):
    """A number and the interval it lies in."""

    value: float
    low: float
    high: float


def wilson(correct: int, total: int, confidence: float = CONFIDENCE) -> Estimate:
    """Share of correct answers with Wilson's score interval (1927), which is sound near 0 and 1 as well.

    Raises:
        ValueError: no answers, or more correct ones than there are.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is no share")
    share = correct / total
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    # Rounding must not leave the share itself outside at 0 and 1.
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent values (one a seed) with Student's interval.

    Raises:
        ValueError: fewer than two values: one says nothing about its spread.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 of them, got {len(values)}")
    mean = fmean(values)
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def median_of_blocks(blocks: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Estimate:
    """Median of all values with an interval that allows for values of one block resembling each other.

    A bootstrap draws whole blocks; its standard deviation is widened by sqrt(k / (k - 1)) and taken times Student's
    quantile with k - 1 degrees of freedom, since a bootstrap of so few blocks is too narrow by itself: for the mean of
    k numbers these two make it Student's interval. A median keeps stray values from widening it, as they would a mean.
    The draws are always the same.

    Raises:
        ValueError: fewer than two blocks, or an empty one: one says nothing about the spread between them.
    """
    import numpy as np

    count = len(blocks)
    if count < 2 or not all(len(block) for block in blocks):
        raise ValueError(f"an interval of a median needs at least 2 blocks and none empty, got {count}")
    values = np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks])
    order = np.argsort(values, kind="stable")
    block_of = np.repeat(np.arange(count), [len(block) for block in blocks])[order]
    drawn = np.random.default_rng(0).integers(0, count, size=(MEDIAN_RESAMPLES, count))
    # A drawn median is one of sorted values with weights: how often a value's block was drawn.
    times = (drawn[:, :, None] == np.arange(count)).sum(axis=1)
    below = times[:, block_of].cumsum(axis=1)
    total = below[:, -1:]
    middle = [values[order][np.argmax(reached, axis=1)] for reached in (2 * below >= total, 2 * below > total)]
    medians = [float(median) for median in (middle[0] + middle[1]) / 2]
    value = float(np.median(values))
    half = t_quantile((1 + confidence) / 2, count - 1) * stdev(medians) * math.sqrt(count / (count - 1))
    return Estimate(value, value - half, value + half)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """one - other, of two independent estimates: distances to the limits are squared and added.

    With Wilson's intervals this is Newcombe's interval for two shares (Statistics in Medicine 17, 1998, method 10);
    for other estimates, differences among them, it is MOVER (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high)


def ratio_of_sums(above: Sequence[float], below: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """sum(above) / sum(below) over documents, with the percentile interval of a bootstrap that draws documents.

    For two models on the same documents the difference of their sums goes above: then the bootstrap is paired. The
    draws are always the same.

    Raises:
        ValueError: fewer than two documents: one says nothing about the spread between them.
    """
    count = len(above)
    if count < 2 or len(below) != count:
        raise ValueError(f"an interval over documents needs at least 2 of them, got {count} and {len(below)}")
    draw = random.Random(0)
    ratios = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(range(count), k=count)
        ratios.append(sum(above[at] for at in chosen) / sum(below[at] for at in chosen))
    ratios.sort()
    outside = round((1 - confidence) / 2 * RESAMPLES)
    return Estimate(sum(above) / sum(below), ratios[outside], ratios[-1 - outside])


def t_cdf(t: float, df: int) -> float:
    """P(T <= t) of Student's t with a whole number of degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(df))
    cos = math.cos(theta)
    term = cos if df % 2 else 1.0
    total = 0.0 if df == 1 else term
    for power in range(3 if df % 2 else 2, df - 1, 2):
        term *= cos * cos * (power - 1) / power
        total += term
    inside = 2 / math.pi * (theta + math.sin(theta) * total) if df % 2 else math.sin(theta) * total
    return (1 + inside) / 2


def t_quantile(probability: float, df: int) -> float:
    """The t with t_cdf(t, df) = probability, by bisection.

    Raises:
        ValueError: a probability outside (0, 1), or less than one degree of freedom.
    """
    if not 0 < probability < 1 or df < 1:
        raise ValueError(f"no quantile at {probability} with {df} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, df) < probability else (low, middle)
    return high
