"""Power laws of loss, and whether a lead grows with size: fits with intervals.

    fit = power_law([(7e6, 3.9, 0), (13e6, 3.7, 0), (30e6, 3.4, 0)])     # size, loss, seed
    fit.exponent                                                        # Estimate(value, low, high)

Lines are fitted to logarithms by least squares: a power law without a floor, since a few sizes cannot tell one. With
several seeds a line is fitted to each, and the interval is Student's over seeds; with one it is Student's from the
residuals of that line, which says how straight it is and not what another seed would give.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmabench.statistics.intervals import CONFIDENCE, Estimate, t_interval, t_quantile

SIZES = 3
"""Sizes that a fit with an interval needs at least."""
RESAMPLES = 2000
Point = tuple[float, float, Any]
"""Size (or FLOPs), loss, seed."""
F64 = NDArray[np.float64]


class Fit(NamedTuple):
    """loss = scale * size ** -exponent."""

    exponent: Estimate
    scale: float
    over: str
    """What the interval is over, in words: "3 seeds" or "residuals"."""

    def at(self, size: float) -> float:
        """The fitted loss."""
        return float(self.scale * size**-self.exponent.value)


def power_law(points: Iterable[Point]) -> Fit | None:
    """The power law through points; None with fewer than SIZES sizes.

    Seeds that lack a size that others have are left out of the interval, and of the fit unless none is complete.

    Raises:
        ValueError: a size or a loss that is not above 0.
    """
    points = list(points)
    if any(not (size > 0 and loss > 0) for size, loss, _ in points):
        raise ValueError("a power law is fitted to sizes and losses above 0")
    logs = [(math.log(size), math.log(loss), seed) for size, loss, seed in points]
    line = line_through(logs)
    if line is None:
        return None
    slope, intercept, over = line
    return Fit(Estimate(-slope.value, -slope.high, -slope.low), math.exp(intercept), over)


def line_through(points: Sequence[Point]) -> tuple[Estimate, float, str] | None:
    """Slope with its interval, intercept, and what the interval is over, of y over x; None with fewer than SIZES x."""
    xs = sorted({x for x, _, _ in points})
    if len(xs) < SIZES:
        return None
    by_seed: dict[Any, dict[float, float]] = {}
    for x, y, seed in points:
        by_seed.setdefault(seed, {})[x] = y
    complete = [values for values in by_seed.values() if len(values) == len(xs)]
    if len(complete) > 1:
        weights = slope_weights(xs)
        slopes = [float(weights @ [values[x] for x in xs]) for values in complete]
        slope = t_interval(slopes)
        mean = float(np.mean([list(values.values()) for values in complete]))
        return slope, mean - slope.value * float(np.mean(xs)), f"{len(complete)} seeds"
    chosen = [(x, y) for x, y in complete[0].items()] if complete else [(x, y) for x, y, _ in points]
    x, y = np.array(chosen).T
    slope_value = float(slope_weights(x) @ y)
    intercept = float(y.mean() - slope_value * x.mean())
    residuals = y - intercept - slope_value * x
    free = len(x) - 2
    error = math.sqrt(float(residuals @ residuals) / free / float(((x - x.mean()) ** 2).sum()))
    half = t_quantile((1 + CONFIDENCE) / 2, free) * error
    return Estimate(slope_value, slope_value - half, slope_value + half), intercept, "residuals"


def slope_weights(xs: Sequence[float] | F64) -> F64:
    """What the values at xs are multiplied with and added up to give their least-squares slope."""
    centred = np.asarray(xs, dtype=np.float64) - np.mean(xs)
    return np.asarray(centred / (centred @ centred))


def over_documents(differences: Mapping[float, F64], tokens: F64) -> Estimate:
    """A difference of losses a token, or the slope of it over log size, with a bootstrap's interval over documents.

    The same documents are drawn for all models, so that what is hard about a document cancels: it is paired.

    Args:
        differences: log size -> sums of losses of one model less those of the other, [D]. One size: the difference
            itself; several: its slope.
        tokens: of the documents, [D].

    Raises:
        ValueError: fewer than two documents, or differences of other documents.
    """
    table = np.stack([np.asarray(values, dtype=np.float64) for values in differences.values()])
    count = table.shape[1]
    if count < 2 or len(tokens) != count:
        raise ValueError(f"an interval over documents needs at least 2 of them, got {count} and {len(tokens)}")
    weights = slope_weights(list(differences)) if len(differences) > 1 else np.ones(1)
    combined = weights @ table
    draw = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES)
    for at in range(RESAMPLES):
        chosen = draw.integers(0, count, count)
        drawn[at] = combined[chosen].sum() / tokens[chosen].sum()
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return Estimate(float(combined.sum() / tokens.sum()), float(low), float(high))
