"""The rule about masks of heads: do the heads of a trained layer keep keys of their own?"""

import math
from typing import Any

from dmabench.claims.finding import Finding, Outcome, Rule, Terms, unanimous
from dmabench.claims.trained_models import task_of


def judge_overlap(rule: Rule, terms: Terms, rows: list[dict[str, Any]]) -> Finding:
    """Overlap (Jaccard) of the live keys of two heads in a trained layer, below 1 by the margin at every seed to hold.

    Models count whose validation loss is within `within` (a share) of MHA's with the same seed and settings.
    """
    task = task_of(rule)
    names = [axis.name for axis in task.axes if axis.name not in ("variant", "window", "lr")]
    mine = [row for row in rows if row.get("task") == task.name and row.get("status") == "PASSED"]
    mine = [row for row in mine if row.get("tested") == "own" and row.get("validation_loss") is not None]
    control: dict[Any, float] = {}
    for row in mine:
        if row["variant"] == rule["control"]:
            key = tuple(str(row.get(name)) for name in names)
            control[key] = min(row["validation_loss"], control.get(key, math.inf))
    groups: dict[Any, dict[Any, dict[str, Any]]] = {}
    left_out = []
    for row in mine:
        if row["variant"] != rule["variant"]:
            continue
        if row.get("overlap") is None:
            left_out.append("one key/value head has no other to differ from")
            continue
        base = control.get(tuple(str(row.get(name)) for name in names))
        if base is None or row["validation_loss"] > base * (1 + rule["within"]):
            left_out.append(
                f"no {rule['control']}"
                if base is None
                else f"its loss is {row['validation_loss']:.3g}, the control's {base:.3g}"
            )
            continue
        group = tuple(str(row.get(name)) for name in (*names, "window") if name != "seed")
        kept = groups.setdefault(group, {}).get(row.get("seed"))
        if kept is None or row["validation_loss"] < kept["validation_loss"]:
            groups[group][row.get("seed")] = row
    outcomes = []
    for by_seed in groups.values():
        overlaps = [row["overlap"] for row in by_seed.values()]
        first = next(iter(by_seed.values()))
        told = f"overlap {min(overlaps):.3f} to {max(overlaps):.3f} ({first['on']}; "
        told += f"untrained {first['overlap_untrained']:.3f}, "
        told += f"by chance {first['overlap_chance']:.3f}; {len(overlaps)} seed{'s' * (len(overlaps) != 1)})"
        below = [value < 1 - terms.margin for value in overlaps]
        enough = len(overlaps) >= terms.seeds
        verdict = "HOLDS" if enough and all(below) else "FAILS" if enough and not any(below) else "NOT_SEPARATED"
        outcomes.append(Outcome(verdict, told))
    return unanimous(outcomes, left_out, f"{rule['task']} of {rule['variant']} and {rule['control']}")
