"""Models that a rule compares: rows of one run as settings, in each the models trained alike, in each its seeds."""

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any, NamedTuple

from dmabench.claims.finding import Rule
from dmabench.summaries.controls import UNDERTRAINED, judged, part, settings_key
from dmabench.summaries.task_layout import HEADERS, length, name_of
from dmabench.summaries.tasks import varying
from dmabench.tasks.task import Task

Row = dict[str, Any]
SAME = ("lr", "seed")
"""Axes in which models that are compared may differ: the rate is each model's best, and seeds are averaged over."""


class Model(NamedTuple):
    """One attention with its own settings: its rows by seed."""

    name: str
    seeds: dict[Any, list[Row]]


class Setting(NamedTuple):
    """Models trained alike: the one that a claim is about, and those of each other attention."""

    where: str
    """What tells it from other settings."""
    first: Row
    model: Model
    others: dict[str, list[Model]]
    left_out: str | None
    """Why nothing may be concluded from it (its control has not learned, say), or None."""


def settings_of(
    task: Task, rows: Iterable[Row], where: dict[str, Any], attention: str, others: Iterable[str], without: tuple = ()
) -> list[Setting]:
    """The settings in which `attention` has rows, with learning rates as validation chose them.

    Args:
        where: field -> the value, or the list of values, that rows must have; None in a row fits every value, since
            the axis does not matter there.
        without: axes that a setting may vary in (for comparisons over lengths).
    """
    wanted = [row for row in judged(task, rows) if row["chosen"] and _fits(row, where)]
    own = [axis.name for axis in task.axes if axis.of_model]

    def key(row: Row) -> Any:
        return (*settings_key(task, row, ("attention", *SAME, *own, *without)), part(row, "kind"))

    differing = varying(task, wanted, ("attention", *SAME, *(name for name in own if name != "window"), *without))
    mine: dict[Any, list[Row]] = {}
    for row in wanted:
        if row.get("attention") == attention:
            mine.setdefault((key(row), *(row.get(name) for name in own)), []).append(row)
    found = []
    for (of_key, *_), of_model in mine.items():
        first = of_model[0]
        compared: dict[str, list[Model]] = {}
        for other in others:
            # Attentions that have a window are compared at the same one.
            alike = [
                row
                for row in wanted
                if row.get("attention") == other
                and key(row) == of_key
                and (row.get("window") is None or first.get("window") in (None, row["window"]))
            ]
            compared[other] = _models(alike, own)
        words = [
            f"{HEADERS.get(name, name)} {length(first[name])}" for name in differing if first.get(name) is not None
        ]
        models = _models(of_model, own)
        model = models[0] if models else Model(name_of(first), {})
        found.append(Setting(" ".join(words), first, model, compared, _left_out(of_model)))
    return found


def shared_seeds(one: Model, other: Model) -> list[Any]:
    """Seeds that both models were trained with."""
    return [seed for seed in one.seeds if seed in other.seeds]


def best(one: Model, models: list[Model], score: Callable[[Model, list[Any]], float | None]) -> Model | None:
    """The model with the highest score over the seeds that it shares with `one`; None where none has a score."""
    scored = [
        (value, model)
        for model in models
        if (seeds := shared_seeds(one, model)) and (value := score(model, seeds)) is not None
    ]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def mean_accuracy(model: Model, seeds: list[Any]) -> float:
    """Mean over rows, then over seeds."""
    return fmean(fmean(row["accuracy"] for row in model.seeds[seed]) for seed in seeds)


def counts(rows: Iterable[Row]) -> tuple[int, int]:
    """Correct answers and answers of all these rows."""
    rows = list(rows)
    return sum(row["correct"] for row in rows), sum(row["total"] for row in rows)


def asked(task: Task, rule: Rule, rows: list[Row]) -> list[Setting]:
    """The settings that a rule is about."""
    of_task = [row for row in rows if row.get("task") == task.name]
    others = str(rule["others"]).split(",")
    return settings_of(task, of_task, rule.get("where", {}), rule.get("attention", "dma"), others)


def task_of(rule: Rule) -> Task:
    """The task that a rule is about; ValueError when there is none."""
    from dmabench.tasks import registry  # its tasks import torch

    return registry.get(rule["task"])


def rivals_of(setting: Setting) -> list[Model]:
    """All models of the other attentions."""
    return [model for models in setting.others.values() for model in models]


def nothing_sparse(setting: Setting) -> str | None:
    """Why the setting says nothing about sparsity, or None."""
    window, seqlen = setting.first.get("window"), setting.first.get("seqlen")
    if window is not None and seqlen is not None and seqlen <= window:
        return f"the window {window} is no shorter than the sequence: nothing is sparse"
    return None


def at(setting: Setting, text: str | None) -> str:
    """The text with the setting before it, where there are several."""
    return f"{setting.where}: {text}" if setting.where else str(text)


def wanted(rule: Rule) -> str:
    """What rows a rule needs, for the sentence that says there are none."""
    words = [rule["task"], rule.get("attention", "dma"), "against", str(rule.get("others", "mha"))]
    words += [f"{name} {value}" for name, value in rule.get("where", {}).items()]
    return " ".join(words)


def _models(rows: Iterable[Row], own: list[str]) -> list[Model]:
    found: dict[Any, Model] = {}
    for row in rows:
        if row.get("status") in ("PASSED", UNDERTRAINED) and row.get("accuracy") is not None:
            model = found.setdefault(tuple(row.get(name) for name in own), Model(name_of(row), {}))
            model.seeds.setdefault(row.get("seed"), []).append(row)
    return list(found.values())


def _left_out(rows: list[Row]) -> str | None:
    undertrained = next((row for row in rows if row["status"] == UNDERTRAINED), None)
    if undertrained:
        return f"{UNDERTRAINED}: {undertrained['reason']}"
    if not any(row["status"] == "PASSED" and row.get("accuracy") is not None for row in rows):
        return f"{rows[0]['status']}: {rows[0].get('reason') or 'no accuracy'}"
    return None


def _fits(row: Row, where: dict[str, Any]) -> bool:
    for name, value in where.items():
        allowed = value if isinstance(value, list) else [value]
        if row.get(name) is not None and row[name] not in allowed:
            return False
    return True
