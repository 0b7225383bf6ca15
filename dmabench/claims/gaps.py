"""Differences between models trained with the same seeds."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dmabench.claims.finding import Outcome
from dmabench.claims.trained_models import Model, Setting, at, best, counts, rivals_of, shared_seeds
from dmabench.statistics.intervals import Estimate, difference, t_interval, wilson


class Gap(NamedTuple):
    """A difference between two models: seed -> its interval within that pair of models."""

    seeds: dict[Any, Estimate]

    def judge(self, holds_above: float, fails_below: float, least: int) -> tuple[str, str]:
        """Verdict and numbers. Both the t-interval over seeds and every interval within a pair must agree."""
        values = [one.value for one in self.seeds.values()]
        within = f"within models {min(one.low for one in self.seeds.values()):+.3f} to "
        within += f"{max(one.high for one in self.seeds.values()):+.3f}"
        if len(values) < max(2, least):
            seeds = f"{len(values)} seed{'s' * (len(values) != 1)}, {least} needed"
            return "NOT_SEPARATED", f"{sum(values) / len(values):+.3f} ({within}; {seeds})"
        over = t_interval(values)
        told = f"{over.value:+.3f} (over {len(values)} seeds {over.low:+.3f} to {over.high:+.3f}, {within})"
        every = [over, *self.seeds.values()]
        if all(one.low > holds_above for one in every):
            return "HOLDS", told
        return "FAILS" if all(one.high < fails_below for one in every) else "NOT_SEPARATED", told


def accuracy_gap(one: Model, other: Model) -> Gap:
    """Accuracy of one minus accuracy of the other."""
    return Gap(
        {
            seed: difference(wilson(*counts(one.seeds[seed])), wilson(*counts(other.seeds[seed])))
            for seed in shared_seeds(one, other)
        }
    )


def against_best(
    setting: Setting,
    score: Callable[[Model, list[Any]], float | None],
    gap_of: Callable[[Model, Model], Gap],
    threshold: float,
    least: int,
) -> Outcome:
    """The gap of a setting's model to the best of the others, by `score`: above the threshold to hold, below to fail.

    Args:
        least: seeds that a verdict needs.
    """
    rival = best(setting.model, rivals_of(setting), score)
    missing = [name for name, models in setting.others.items() if not models]
    if rival is None:
        return Outcome("NO_ROWS", at(setting, f"not measured: {', '.join(missing) or 'a seed of both'}"))
    verdict, told = gap_of(setting.model, rival).judge(threshold, threshold, least)
    told += f" against {rival.name}"
    # What is behind one rival is behind the best of all; to be ahead of the best, all must have been measured.
    if missing and verdict != "FAILS":
        verdict, told = "NO_ROWS", f"not measured: {', '.join(missing)} ({told})"
    return Outcome(verdict, at(setting, told))
