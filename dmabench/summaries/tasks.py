"""Rows of trained models, one for each seed, as one line for each setting: what tables and charts show."""

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from dmabench.statistics.intervals import wilson
from dmabench.summaries.controls import (
    CONTROL,
    PARTS,
    UNDERTRAINED,
    control_key,
    judged,
    part,
    settings_key,
    within_training,
)
from dmabench.tasks.task import Task

Row = dict[str, Any]
EFFECTIVE = 0.856
"""Mean accuracy up to which a length counts as effective: RULER's threshold (arXiv 2404.06654)."""
DERIVED = ("batch", "step_tokens", "extrapolate", "test_len", "depth")
"""Axes that follow from others, or whose values stand in one table: they tell no two lines apart."""


def summaries(task: Task, rows: Iterable[Row]) -> list[Row]:
    """One row for each setting (and part of its cell), with the learning rate that validation chose.

    accuracy is the mean over seeds; low and high are Wilson's interval for one seed and the range over several, and
    `seeds` counts them. Other numbers are medians over seeds. `speedup` is MHA's inference time over this one's, with
    the same settings and batch. Rows that have no accuracy stay where no seed of their setting has one.
    """
    groups: dict[Any, list[Row]] = {}
    for row in judged(task, rows):
        if row["chosen"]:
            parts = tuple(part(row, name) for name in PARTS)
            groups.setdefault((settings_key(task, row, ("seed",)), parts), []).append(row)
    found = [_one(group) for group in groups.values()]

    def timed_alike(row: Row) -> tuple[Any, ...]:
        how = row.get("infer_batch"), bool(row.get("infer_replayed"))
        return control_key(task, row), part(row, "test_len"), *how

    dense = {
        timed_alike(row): row["infer_ms"] for row in found if row.get("attention") == CONTROL and row.get("infer_ms")
    }
    for row in found:
        base = dense.get(timed_alike(row))
        row["speedup"] = base / row["infer_ms"] if base and row.get("infer_ms") else None
    return found


def varying(task: Task, rows: Sequence[Row], without: Iterable[str] = ()) -> list[str]:
    """Axes (and kinds) in which these rows differ."""
    left_out = {*without, *DERIVED}
    names = [axis.name for axis in task.axes] + ["kind"] * all(axis.name != "kind" for axis in task.axes)
    return [
        name
        for name in names
        if name not in left_out
        and len({str(row.get(name)) for row in rows if row.get(name) is not None and not _many(row.get(name))}) > 1
    ]


def shared(task: Task, rows: Sequence[Row]) -> dict[str, Any]:
    """Axes on whose value all rows agree that have one."""
    found = {}
    for axis in task.axes:
        values = {str(row[axis.name]): row[axis.name] for row in rows if row.get(axis.name) not in (None, [], ())}
        if len(values) == 1:
            found[axis.name] = next(iter(values.values()))
    return found


def extrapolation(task: Task, rows: Iterable[Row]) -> list[Row]:
    """Needle rows by model and kind: `lengths` (test length -> mean accuracy over depths), `within` and `beyond` (mean
    of those up to the trained length and above it, None where none was tested), `ratio` = beyond / within, and
    `effective`: the longest length up to which all means are at least EFFECTIVE (0 for none)."""
    groups: dict[Any, list[Row]] = {}
    for row in summaries(task, rows):
        groups.setdefault((settings_key(task, row, ("seed",)), part(row, "kind")), []).append(row)
    found = []
    for group in groups.values():
        by_length: dict[int, list[Row]] = {}
        for row in group:
            if part(row, "test_len") is not None and row.get("accuracy") is not None:
                by_length.setdefault(row["test_len"], []).append(row)
        lengths = {length: fmean(row["accuracy"] for row in by_length[length]) for length in sorted(by_length)}
        inside = {length: within_training(by_length[length][0]) for length in lengths}
        within = [lengths[length] for length in lengths if inside[length]]
        beyond = [lengths[length] for length in lengths if not inside[length]]
        effective = 0
        for length, accuracy in lengths.items():
            if accuracy < EFFECTIVE:
                break
            effective = length
        first = {
            name: value for name, value in group[0].items() if name not in ("test_len", "depth", "within", "beyond")
        }
        inside_mean, beyond_mean = (fmean(means) if means else None for means in (within, beyond))
        ratio = beyond_mean / inside_mean if beyond_mean is not None and inside_mean else None
        means = {"within": inside_mean, "beyond": beyond_mean}
        found.append({**first, "lengths": lengths, **means, "ratio": ratio, "effective": effective})
    return found


def _one(group: list[Row]) -> Row:
    scored = [row for row in group if row.get("accuracy") is not None and row.get("status") in ("PASSED", UNDERTRAINED)]
    told = scored or group
    found = dict(told[0])
    for name in dict.fromkeys(name for row in told for name in row):
        numbers = [row[name] for row in told if _number(row.get(name))]
        if len(numbers) == len(told) and len(set(numbers)) > 1:
            found[name] = median(numbers)
    undertrained = next((row for row in told if row.get("status") == UNDERTRAINED), None)
    if undertrained:
        found |= {"status": UNDERTRAINED, "reason": undertrained.get("reason")}
    found |= {"seeds": len({row.get("seed") for row in scored}), "low": None, "high": None, "seed": None}
    if scored:
        accuracies = [row["accuracy"] for row in scored]
        found["accuracy"] = fmean(accuracies)
        if found["seeds"] > 1:
            found |= {"low": min(accuracies), "high": max(accuracies)}
        elif found.get("total"):
            _, found["low"], found["high"] = wilson(scored[0]["correct"], scored[0]["total"])
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _many(value: Any) -> bool:
    return isinstance(value, list | tuple)
