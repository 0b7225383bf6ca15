"""The rule about predictions: does a model learn what it was predicted to learn, and fail where it was to fail?"""

from dmabench.claims.finding import Finding, Outcome, Rule, Terms, unanimous
from dmabench.claims.trained_models import (
    Row,
    Setting,
    asked,
    at,
    counts,
    mean_accuracy,
    nothing_sparse,
    task_of,
    wanted,
)
from dmabench.statistics.intervals import t_interval, wilson

LEARNS, FAILS = "learns", "fails"
"""Values of a row's field `predicted` that are judged; others are open."""


def judge_prediction(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Test accuracy against `learned`, in the settings whose rows carry the prediction `predicted`.

    A model has learned where the t-interval over seeds and Wilson's within every model lie at `learned` or above, and
    has not where they all lie below.
    """
    rows = [row for row in rows if row.get("predicted") == rule["predicted"] or row.get("attention") == "mha"]
    outcomes, left_out = [], []
    for setting in asked(task_of(rule), {**rule, "others": ""}, rows):
        if why := setting.left_out or nothing_sparse(setting):
            left_out.append(at(setting, why))
        else:
            outcomes.append(_outcome(rule, terms, setting))
    return unanimous(outcomes, left_out, f"{wanted(rule)}, predicted: {rule['predicted']}")


def _outcome(rule: Rule, terms: Terms, setting: Setting) -> Outcome:
    seeds = list(setting.model.seeds)
    told = f"{setting.model.name} reaches {mean_accuracy(setting.model, seeds):.3f}"
    intervals = [wilson(*counts(setting.model.seeds[seed])) for seed in seeds]
    if len(seeds) < max(2, terms.seeds):
        few = f"{told} ({len(seeds)} seed{'s' * (len(seeds) != 1)}, {terms.seeds} needed)"
        return Outcome("NOT_SEPARATED", at(setting, few))
    intervals.append(t_interval([mean_accuracy(setting.model, [seed]) for seed in seeds]))
    low, high = min(one.low for one in intervals), max(one.high for one in intervals)
    came = LEARNS if low >= rule["learned"] else FAILS if high < rule["learned"] else None
    verdict = "NOT_SEPARATED" if came is None else "HOLDS" if came == rule["predicted"] else "FAILS"
    return Outcome(verdict, at(setting, f"{told} ({low:.3f} to {high:.3f}, learned from {rule['learned']:g} on)"))
