"""What a rule says: its verdict on some rows, and how the verdicts of several settings become one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Row = dict[str, Any]
Rule = dict[str, Any]
MOST = 6
"""Settings that a detail names."""


class Finding(NamedTuple):
    """HOLDS, FAILS, NOT_SEPARATED or NO_ROWS, and why."""

    verdict: str
    detail: str


class Terms(NamedTuple):
    """What a claim asks of its evidence: a margin in the metric's unit, and so many seeds."""

    margin: float
    seeds: int


class Kind(NamedTuple):
    """A kind of rule: its evaluation (rule, terms, rows of one run) and the keys it takes."""

    judge: Callable[[Rule, Terms, list[Row]], Finding]
    required: tuple[str, ...]
    optional: tuple[str, ...]


class Outcome(NamedTuple):
    """What one setting says."""

    verdict: str
    text: str


def unanimous(outcomes: list[Outcome], left_out: Iterable[str], wanted: str) -> Finding:
    """The verdict that all settings share; NOT_SEPARATED where they differ, or where all had to be left out."""
    kinds = [one.verdict for one in outcomes]
    left_out = list(dict.fromkeys(left_out))
    told = [one.text for one in outcomes] + [f"left out, {text}" for text in left_out]
    detail = "; ".join(told[:MOST]) + (f"; and {len(told) - MOST} more" if len(told) > MOST else "")
    if len(outcomes) > 1:
        detail = f"{kinds.count('HOLDS')} of {len(kinds)} settings hold, {kinds.count('FAILS')} fail: {detail}"
    if not outcomes:
        return Finding("NOT_SEPARATED", detail) if left_out else Finding("NO_ROWS", f"no rows ({wanted})")
    return Finding(kinds[0] if len(set(kinds)) == 1 else "NOT_SEPARATED", detail)
