"""What makes trained models comparable: a learning rate chosen without the test split, and a control that has learned.

Rows come as they were stored; nothing here changes them. judged() returns copies that say more.
"""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from dmabench.tasks.task import Task

Row = dict[str, Any]
Key = tuple[Any, ...]
CONTROL = "mha"
"""The attention that controls every comparison: it sees all keys, so what it has not learned, nobody was taught."""
UNDERTRAINED = "UNDERTRAINED"
PARTS = ("kind", "test_len", "depth")
"""Fields that tell the rows of one cell apart. A cell that failed has one row, with all values or none."""


def judged(task: Task, rows: Iterable[Row]) -> list[Row]:
    """The rows, in order, with three fields more; PASSED rows without a sound control become UNDERTRAINED.

    chosen: False for rows of a learning rate that others beat on validation accuracy (mean over seeds).
    control: accuracy of MHA with the same settings (its mean over seeds, and over the lengths it was trained at).
    reason: of an UNDERTRAINED row, why it is one.
    """
    rows = list(rows)
    chosen = choose_rates(task, rows)
    found = []
    controls = _controls(task, [row for row in rows if row.get("lr") == chosen[rate_key(task, row)]])
    for row in rows:
        key = control_key(task, row)
        value, why = controls.get(key) or controls.get((*key[:-1], None)) or (None, _absent(task, row))
        why = why if task.control > 0 else None
        told = {**row, "chosen": row.get("lr") == chosen[rate_key(task, row)], "control": value}
        if row.get("status") == "PASSED" and why:
            told |= {"status": UNDERTRAINED, "reason": why}
        found.append(told)
    return found


def choose_rates(task: Task, rows: Iterable[Row]) -> dict[Key, Any]:
    """The learning rate of each set of settings (rate_key): the best by Task.chosen_by, as a mean over the seeds that
    all rates have, or over its own where they share none. The smaller rate wins a tie. A rate that was not validated
    is chosen only where none was."""
    sign = -1 if task.chosen_by.endswith("loss") else 1
    scores: dict[Key, dict[Any, dict[Any, list[float]]]] = {}
    for row in rows:
        by_seed = scores.setdefault(rate_key(task, row), {}).setdefault(row.get("lr"), {})
        if row.get("status") == "PASSED" and row.get(task.chosen_by) is not None:
            by_seed.setdefault(row.get("seed"), []).append(sign * row[task.chosen_by])
    return {key: _best_rate(by_rate) for key, by_rate in scores.items()}


def rate_key(task: Task, row: Row) -> Key:
    """What two rows share that differ at most in learning rate and seed."""
    return settings_key(task, row, without=("lr", "seed"))


def control_key(task: Task, row: Row) -> Key:
    """What a row shares with its control: all settings save attention, the axes that matter to some attentions alone,
    learning rate and seed; and the kind of question, where a cell is asked several."""
    own = [axis.name for axis in task.axes if axis.of_model]
    return (*settings_key(task, row, ("attention", "lr", "seed", *own)), part(row, "kind"))


def settings_key(task: Task, row: Row, without: Iterable[str] = ()) -> Key:
    """Values of the task's axes, save those whose values are parts of one cell."""
    left_out = {*without, *PARTS}
    values = (row.get(axis.name) for axis in task.axes if axis.name not in left_out)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def part(row: Row, name: str) -> Any:
    """Which part of its cell a row is; None for a row about the whole cell."""
    value = row.get(name)
    return None if isinstance(value, list | tuple) else value


def within_training(row: Row) -> bool:
    """Was the model trained at this length, or a longer one? True for tasks that test where they trained."""
    tested, trained = part(row, "test_len"), row.get("train_len")
    return tested is None or trained is None or tested <= trained


def _best_rate(by_rate: dict[Any, dict[Any, list[float]]]) -> Any:
    scored = {rate: by_seed for rate, by_seed in by_rate.items() if by_seed}
    rates = sorted(scored or by_rate, key=lambda rate: (rate is None, rate))
    if not scored:
        return rates[0]
    shared = set.intersection(*(set(by_seed) for by_seed in scored.values()))

    def score(rate: Any) -> float:
        by_seed = scored[rate]
        return fmean(fmean(values) for seed, values in by_seed.items() if not shared or seed in shared)

    return max(rates, key=score)  # the first of equals


def _controls(task: Task, rows: list[Row]) -> dict[Key, tuple[float | None, str | None]]:
    """control_key -> accuracy of the control, and why it is none (None: it is sound)."""
    of_key: dict[Key, list[Row]] = {}
    for row in rows:
        if row.get("attention") == CONTROL and within_training(row):
            of_key.setdefault(control_key(task, row), []).append(row)
    return {key: _control(task, of_one) for key, of_one in of_key.items()}


def _control(task: Task, rows: list[Row]) -> tuple[float | None, str | None]:
    by_seed: dict[Any, list[float]] = {}
    for row in rows:
        if row.get("status") == "PASSED" and row.get("accuracy") is not None:
            by_seed.setdefault(row.get("seed"), []).append(row["accuracy"])
    if not by_seed:
        reason = f": {rows[0]['reason']}" if rows[0].get("reason") else ""
        return None, f"no control: MHA with these settings is {rows[0].get('status')}{reason}"
    value = fmean(fmean(values) for values in by_seed.values())
    if value >= task.control:
        return value, None
    where = " at trained lengths" if any(row.get("train_len") is not None for row in rows) else ""
    return value, (
        f"MHA itself reaches {value:.3f}{where} with these settings, and {task.control:g} is needed: {remedy(rows)}"
    )


def remedy(rows: Iterable[Row]) -> str:
    """What to do about a control that has not learned a task."""
    if any(row.get("model") for row in rows):
        return "take a model that was trained longer"
    return "train longer (--steps) or try other learning rates (--lr)"


def _absent(task: Task, row: Row) -> str:
    if row.get("model"):
        return "no control: no model with dense attention was scored with these settings (name one with --model too)"
    return f"no control: MHA was not run with these settings (dmabench {task.name} --attention {CONTROL},...)"
