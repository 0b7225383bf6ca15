"""The rule about needles: how much accuracy is lost beyond the trained length."""

from typing import Any

from dmabench.claims.finding import Finding, Outcome, Rule, Terms, unanimous
from dmabench.claims.gaps import Gap
from dmabench.claims.trained_models import Model, Row, asked, at, counts, rivals_of, shared_seeds, task_of, wanted
from dmabench.statistics.intervals import Estimate, difference, wilson
from dmabench.summaries.controls import within_training


def judge_loss(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Accuracy within trained lengths minus accuracy beyond them, of DMA and of that one of `others` that loses least.

    Holds if DMA loses less by more than the margin; fails if it loses more. Both are measured on the lengths and
    depths that both models were tested at. A model below the task's control within trained lengths has little to lose:
    it is no rival, and if it is DMA, the setting is left out. Rows about text do not count: their seeds are those of
    the haystacks, not of trainings.
    """
    task = task_of(rule)
    rows = [row for row in rows if row.get("haystack") != "text"]
    outcomes, left_out = [], []
    for setting in asked(task, rule, rows):
        if setting.left_out:
            left_out.append(at(setting, setting.left_out))
            continue
        own = _within(setting.model, list(setting.model.seeds))
        if own is None or own < task.control:
            told = "nothing" if own is None else f"{own:.3f}"
            left_out.append(at(setting, f"{setting.model.name} itself reaches {told} at trained lengths"))
            continue
        learned = [model for model in rivals_of(setting) if (_within(model, list(model.seeds)) or 0) >= task.control]
        gaps = {model.name: gap for model in learned if (gap := _loss_gap(setting.model, model)).seeds}
        missing = [name for name, models in setting.others.items() if not models]
        if not gaps:
            why = f"not measured: {', '.join(missing)}" if missing else "no length beyond training was tested by both"
            outcomes.append(Outcome("NO_ROWS", at(setting, why)))
            continue
        name = min(gaps, key=lambda one: sum(gap.value for gap in gaps[one].seeds.values()) / len(gaps[one].seeds))
        verdict, told = gaps[name].judge(terms.margin, 0.0, terms.seeds)
        told = f"loses less than {name} by {told}"
        if missing and verdict != "FAILS":
            verdict, told = "NO_ROWS", f"not measured: {', '.join(missing)} ({told})"
        outcomes.append(Outcome(verdict, at(setting, told)))
    return unanimous(outcomes, left_out, wanted(rule))


def _loss_gap(one: Model, other: Model) -> Gap:
    """Loss of the other minus loss of this one, on the cells that both have."""
    found = {}
    for seed in shared_seeds(one, other):
        mine, theirs = (
            {(row.get("test_len"), row.get("depth")): row for row in model.seeds[seed]} for model in (one, other)
        )
        shared = [cell for cell in mine if cell in theirs]
        losses = [_loss([side[cell] for cell in shared]) for side in (theirs, mine)]
        if losses[0] and losses[1]:
            found[seed] = difference(losses[0], losses[1])
    return Gap(found)


def _loss(rows: list[Row]) -> Estimate | None:
    within = [row for row in rows if within_training(row)]
    beyond = [row for row in rows if not within_training(row)]
    return difference(wilson(*counts(within)), wilson(*counts(beyond))) if within and beyond else None


def _within(model: Model, seeds: list[Any]) -> float | None:
    rows = [row for seed in seeds for row in model.seeds[seed] if within_training(row)]
    correct, total = counts(rows)
    return correct / total if total else None
