"""Rules about accuracy and speed of trained models: leads, leads that grow with length, inference time.

A claim is judged in every setting that was measured. It HOLDS where it holds in all, FAILS where it fails in all, and
is NOT_SEPARATED else. Settings without a sound control are left out and named.
"""

from typing import Any

from dmabench.claims.finding import Finding, Outcome, Rule, Terms, unanimous
from dmabench.claims.gaps import Gap, accuracy_gap, against_best
from dmabench.claims.trained_models import (
    Model,
    Row,
    Setting,
    asked,
    at,
    best,
    mean_accuracy,
    nothing_sparse,
    rivals_of,
    task_of,
    wanted,
)
from dmabench.statistics.intervals import Estimate, difference
from dmabench.summaries.task_layout import length


def judge_lead(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Accuracy of DMA (or `attention`) minus that of the best of `others`, against the margin: above it to hold.

    `not_behind`: against -margin. `behind`: the others' lead is judged instead. `wilson: false`: over seeds alone.
    `sparse`: settings in which the window is no shorter than the sequence are left out.
    """
    threshold = -terms.margin if rule.get("not_behind") else terms.margin

    def gap_of(model: Model, rival: Model) -> Gap:
        gap = accuracy_gap(model, rival).seeds
        if rule.get("behind"):
            gap = {seed: Estimate(-one.value, -one.high, -one.low) for seed, one in gap.items()}
        if not rule.get("wilson", True):
            gap = {seed: Estimate(one.value, one.value, one.value) for seed, one in gap.items()}
        return Gap(gap)

    task = task_of(rule)
    outcomes, left_out = [], []
    for setting in asked(task, rule, rows):
        if why := setting.left_out or (nothing_sparse(setting) if rule.get("sparse") else None):
            left_out.append(at(setting, why))
            continue
        outcomes.append(against_best(setting, mean_accuracy, gap_of, threshold, terms.seeds))
    return unanimous(outcomes, left_out, wanted(rule))


def judge_lead_growth(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """The lead (judge_lead) at each of `lengths` minus the lead at `base`, above the margin to hold."""
    task = task_of(rule)
    where = {**rule.get("where", {}), "seqlen": [rule["base"], *rule["lengths"]]}
    # Shorter training steps and batches may go with longer sequences.
    free = ("seqlen", "batch", "steps")
    groups: dict[Any, dict[int, Setting]] = {}
    for setting in asked(task, {**rule, "where": where}, rows):
        axes = [axis.name for axis in task.axes if axis.name not in ("lr", "seed", *free)]
        key = tuple(str(setting.first.get(name)) for name in axes)
        groups.setdefault(key, {})[setting.first["seqlen"]] = setting
    outcomes, left_out = [], []
    for by_length in groups.values():
        undertrained = [at(one, one.left_out) for one in by_length.values() if one.left_out]
        if undertrained:
            left_out += undertrained
            continue
        gaps, missing = {}, [f"T {one}" for one in where["seqlen"] if one not in by_length]
        for seqlen, setting in by_length.items():
            rival = best(setting.model, rivals_of(setting), mean_accuracy)
            missing += [f"{name} at T {seqlen}" for name, models in setting.others.items() if not models]
            if rival:
                gaps[seqlen] = accuracy_gap(setting.model, rival)
        if missing:
            outcomes.append(Outcome("NO_ROWS", f"not measured: {', '.join(missing)}"))
            continue
        for seqlen in rule["lengths"]:
            long, base = gaps[seqlen].seeds, gaps[rule["base"]].seeds
            growth = Gap({seed: difference(long[seed], base[seed]) for seed in long if seed in base})
            if growth.seeds:
                verdict, told = growth.judge(terms.margin, terms.margin, terms.seeds)
                told = f"lead at {length(seqlen)} minus lead at {length(rule['base'])}: {told}"
                outcomes.append(Outcome(verdict, told))
    return unanimous(outcomes, left_out, wanted(rule))


def judge_inference(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Time of one forward of trained models against MHA's, by both readings of "faster by a share".

    First reading: 1 - DMA / MHA; second: MHA / DMA - 1. Holds if the first is above `faster_by` with the slowest of
    DMA's seeds and the fastest of MHA's; fails if the second is not with the fastest and the slowest.
    """
    task = task_of(rule)
    outcomes, left_out = [], []
    for setting in asked(task, {**rule, "others": "mha"}, rows):
        if (setting.first.get("seqlen") or 0) < rule["min_seqlen"]:
            continue
        if setting.left_out:
            left_out.append(at(setting, setting.left_out))
            continue
        ours = [row for of_seed in setting.model.seeds.values() for row in of_seed if row.get("infer_ms")]
        dense = [
            row
            for model in setting.others["mha"]
            for of_seed in model.seeds.values()
            for row in of_seed
            if row.get("infer_ms") and ours and _timed_as(row) == _timed_as(ours[0])
        ]
        if not ours or not dense:
            what = "MHA's time with the same batch" if ours else "DMA's time (the run did not time inference)"
            outcomes.append(Outcome("NO_ROWS", at(setting, f"not measured: {what}")))
            continue
        mine, theirs = ([row["infer_ms"] for row in side] for side in (ours, dense))
        first = 1 - max(mine) / min(theirs), 1 - min(mine) / max(theirs)
        second = min(theirs) / max(mine) - 1, max(theirs) / min(mine) - 1
        verdict = "HOLDS" if first[0] > rule["faster_by"] else "FAILS" if second[1] <= rule["faster_by"] else ""
        told = f"1 - DMA/MHA = {first[0]:.2f} to {first[1]:.2f}, MHA/DMA - 1 = {second[0]:.2f} to {second[1]:.2f}"
        seeds = min(len({row.get("seed") for row in side}) for side in (ours, dense))
        if seeds < terms.seeds:
            verdict, told = "", f"{told} ({seeds} seed{'s' * (seeds != 1)}, {terms.seeds} needed)"
        outcomes.append(Outcome(verdict or "NOT_SEPARATED", at(setting, told)))
    return unanimous(outcomes, left_out, wanted(rule))


def _timed_as(row: Row) -> tuple[Any, bool]:
    return row.get("infer_batch"), bool(row.get("infer_replayed"))
