"""Rules about loss on held-out text: who is best, and whether a lead grows with the size of the model."""

import math
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from dmabench.claims.finding import Finding, Outcome, Rule, Terms, unanimous
from dmabench.claims.gaps import Gap, against_best
from dmabench.claims.trained_models import Model, Setting, asked, at, best, rivals_of, shared_seeds, task_of, wanted
from dmabench.statistics.intervals import Estimate
from dmabench.statistics.scaling_fit import SIZES, over_documents, slope_weights

FREE = ("size", "window", "batch", "tokens", "vocab", "steps", "stage2_window", "mla_latent")
"""Axes that go with the size of a model."""


def judge_loss_lead(rule: Rule, terms: Terms, rows: list[dict[str, Any]]) -> Finding:
    """Loss of the best of `others` minus that of DMA (or `attention`), in nats a token: above the margin to hold, over
    seeds and over documents, which are drawn alike for both models. Models trained on fewer tokens than `least_tokens`
    are left out."""
    outcomes, left_out = [], []
    for setting in asked(task_of(rule), rule, rows):
        if why := setting.left_out or _too_short(rule, setting):
            left_out.append(at(setting, why))
            continue
        outcomes.append(against_best(setting, _minus_loss, _loss_gap, terms.margin, terms.seeds))
    return unanimous(outcomes, left_out, wanted(rule))


def judge_loss_lead_growth(rule: Rule, terms: Terms, rows: list[dict[str, Any]]) -> Finding:
    """Slope of that lead over the logarithm of DMA's parameters, over at least three sizes: above the margin to hold.

    At each size the rival is the best of `others`; those that no size has are named, and nothing holds without them.
    """
    task = task_of(rule)
    groups: dict[Any, list[Setting]] = {}
    names = [axis.name for axis in task.axes if axis.name not in ("attention", "lr", "seed", *FREE)]
    for setting in asked(task, rule, rows):
        groups.setdefault(tuple(str(setting.first.get(name)) for name in names), []).append(setting)
    outcomes, left_out = [], []
    for settings in groups.values():
        pairs: dict[float, tuple[Model, Model]] = {}
        missing: dict[str, None] = {}
        for setting in settings:
            if setting.left_out:
                left_out.append(f"{setting.first.get('size')}: {setting.left_out}")
                continue
            missing |= dict.fromkeys(name for name, models in setting.others.items() if not models)
            rival = best(setting.model, rivals_of(setting), _minus_loss)
            size = setting.first.get("parameters")
            if rival and size:
                pairs[math.log(size)] = setting.model, rival
        if len(pairs) < SIZES:
            outcomes.append(Outcome("NO_ROWS", f"{len(pairs)} sizes with a rival, {SIZES} needed"))
            continue
        seeds = [
            seed for seed in next(iter(pairs.values()))[0].seeds if all(_both(pair, seed) for pair in pairs.values())
        ]
        if not seeds:
            outcomes.append(Outcome("NO_ROWS", "no seed of all sizes"))
            continue
        gap = Gap({seed: loss_lead(pairs, seed) for seed in seeds})
        verdict, told = gap.judge(terms.margin, terms.margin, terms.seeds)
        rivals = ", ".join(dict.fromkeys(rival.name for _, rival in pairs.values()))
        sizes = ", ".join(dict.fromkeys(str(setting.first.get("size")) for setting in settings))
        told = f"slope over {sizes}: {told} against {rivals}"
        if missing and verdict == "HOLDS":
            verdict, told = "NOT_SEPARATED", f"not measured: {', '.join(missing)} ({told})"
        outcomes.append(Outcome(verdict, told))
    return unanimous(outcomes, left_out, wanted(rule))


def _loss_gap(model: Model, rival: Model) -> Gap:
    return Gap({seed: loss_lead({0.0: (model, rival)}, seed) for seed in shared_seeds(model, rival)})


def _too_short(rule: Rule, setting: Setting) -> str | None:
    tokens, least = setting.first.get("trained_tokens"), rule.get("least_tokens", 0)
    return (
        None if tokens is None or tokens >= least else f"trained on {tokens:.3g} tokens, the claim is about {least:.3g}"
    )


def _minus_loss(model: Model, seeds: list[Any]) -> float | None:
    losses = [_row(model, seed).get("test_loss") for seed in seeds]
    return None if None in losses else -fmean(loss for loss in losses if loss is not None)


def _row(model: Model, seed: Any) -> dict[str, Any]:
    return model.seeds[seed][0]


def _both(pair: Iterable[Model], seed: Any) -> bool:
    return all(seed in model.seeds for model in pair)


def loss_lead(pairs: dict[float, tuple[Model, Model]], seed: Any) -> Estimate:
    """How much lower the loss of the first model of each pair is (several sizes: the slope of it), with the interval
    over documents where rows have them, and everything between minus and plus infinity where they do not."""
    from dmabench.tasks.document_losses import unpack

    rows = {size: [_row(model, seed) for model in pair] for size, pair in pairs.items()}
    texts = {row.get("text_key") for pair in rows.values() for row in pair}
    if len(texts) == 1 and all(row.get("document_losses") for pair in rows.values() for row in pair):
        losses = {size: [unpack(row["document_losses"]) for row in pair] for size, pair in rows.items()}
        tokens = next(iter(losses.values()))[0][1]
        if len(tokens) > 1 and all(list(found) == list(tokens) for pair in losses.values() for _, found in pair):
            return over_documents(
                {size: other[0] - own[0] for size, (own, other) in losses.items()}, tokens.astype(float)
            )
    leads = [other["test_loss"] - own["test_loss"] for own, other in rows.values()]
    value = float(slope_weights(list(rows)) @ leads) if len(leads) > 1 else leads[0]
    return Estimate(value, -math.inf, math.inf)
