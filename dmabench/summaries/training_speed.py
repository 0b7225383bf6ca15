"""Tokens a second of a training say something of an attention only where it had the device to itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmabench.tasks.task import Task

SPEED = "tokens_per_s"


def measured(row: Mapping[str, Any], field: str) -> Any:
    """A field of a row; None for the speed of a training that shared the device with others (--jobs)."""
    return None if field == SPEED and _shared(row) else row.get(field)


def speed_notes(task: Task, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on speeds that no table shows, where one would."""
    shared = sum(_shared(row) and row.get(SPEED) is not None for row in rows)
    if not shared or SPEED not in task.columns:
        return []
    return [
        f"{shared} of {len(rows)} rows were trained beside others (--jobs): their tokens per second are left out, and "
        "inference was timed with the device to itself"
    ]


def _shared(row: Mapping[str, Any]) -> bool:
    return (row.get("jobs") or 1) > 1
