"""Which models differ on which tasks: paired tests on the same examples, corrected over the tasks."""

import math
from collections.abc import Iterable
from typing import Any

from dmabench.evals.cells import variant
from dmabench.statistics.paired import holm, p_value

Row = dict[str, Any]
Key = tuple[Any, ...]


def shown(rows: Iterable[Row]) -> list[Row]:
    """The rows that tables show: the headline metrics of what was asked for, and what could not be scored."""
    return [row for row in rows if row.get("subtask_of") is None and (row.get("headline") or row["status"] != "PASSED")]


def name_of(row: Row) -> str:
    """The model of a row, and its window where that was set."""
    return variant(row["model"], row.get("window_set"))


def line_of(row: Row) -> Key:
    """What the rows of one line of a table share: the task, its examples in the prompt, and the metric."""
    return row["task"], row.get("shots"), row.get("metric"), row.get("limit")


def compare(rows: list[Row], samples: Iterable[Row]) -> dict[tuple[str, Key], float]:
    """(model, line) -> Holm-adjusted p of "scores as the first model does", over all lines of that model.

    Missing where the two did not see the same examples (another task_hash), or the first was not scored.

    Args:
        rows: rows of one run.
        samples: the lines of its samples.jsonl: the score of each example.
    """
    scores = {(one["cell"], one.get("part")): one["scores"] for one in samples if one.get("scores")}
    scored = [row for row in shown(rows) if row["status"] == "PASSED"]
    names = list(dict.fromkeys(name_of(row) for row in scored))
    by_place = {(name_of(row), line_of(row)): row for row in scored}
    found: dict[tuple[str, Key], float] = {}
    for name in names[1:]:
        tested: list[tuple[str, Key]] = []
        ps: list[float] = []
        for row in (row for row in scored if name_of(row) == name):
            first = by_place.get((names[0], line_of(row)))
            if first is None or first["task_hash"] != row["task_hash"]:
                continue
            ours, theirs = (scores.get((one["cell"], one["part"])) for one in (row, first))
            if ours and theirs:
                tested.append((name, line_of(row)))
                ps.append(p_value(ours, theirs))
        comparable = [at for at, p in enumerate(ps) if not math.isnan(p)]
        for at, adjusted in zip(comparable, holm([ps[at] for at in comparable]), strict=True):
            found[tested[at]] = adjusted
    return found
