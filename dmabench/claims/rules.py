"""How a claim's machine-readable rule turns the rows of one run into a verdict."""

import math
from typing import Any

from dmabench.claims.finding import Finding, Kind, Rule, Terms
from dmabench.claims.rules_ablation import judge_overlap
from dmabench.claims.rules_language import judge_loss_lead, judge_loss_lead_growth
from dmabench.claims.rules_needle import judge_loss
from dmabench.claims.rules_patterns import judge_prediction
from dmabench.claims.rules_recall import judge_inference, judge_lead, judge_lead_growth
from dmabench.summaries.reported import figure, masked_key, masked_rows, matches, ratios
from dmabench.summaries.speedups import fastest_dense, shape_of

Row = dict[str, Any]


def judge_speedup(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Ratio of a baseline's time to a backend's, setting by setting, each with its interval.

    A setting holds if baseline p10 / backend p90 reaches the threshold and fails if baseline p90 / backend p10 does
    not. `of` says how many settings must: all, most (over half) or any.
    """
    one = figure(rule["figure"], rule["series"]) if "figure" in rule else None
    published = ratios(one) if one else {}
    masked, dense = masked_rows(rows), fastest_dense(rows)
    outcomes: list[tuple[str, str]] = []
    seen: set[Any] = set()
    for row in rows:
        if not _asked_for(row, rule) or (one and (not matches(one, row) or row.get("seqlen") not in published)):
            continue
        base = dense.get(shape_of(row)) if rule["baseline"] == "fastest-dense" else masked.get(masked_key(row))
        low, high = _interval(base, rule["measure"]), _interval(row, rule["measure"])
        if base is None or low is None or high is None:
            continue
        threshold = published[row["seqlen"]] if one else rule["at_least"]
        threshold *= 1 - terms.margin
        least, most = low[0] / high[1], low[1] / high[0]
        verdict = "HOLDS" if least >= threshold else "FAILS" if most < threshold else "NOT_SEPARATED"
        ratio = base[rule["measure"]] / row[rule["measure"]]
        # The window and delta are what settings differ in once the length is named.
        where = f"{_id(row)} {row.get('pass')} T {row['seqlen']} w {row.get('window')} {row.get('delta')}"
        outcomes.append((verdict, f"{ratio:.2f}x ({least:.2f} to {most:.2f}, needs {threshold:.2f}) {where}"))
        seen |= {row["seqlen"], _id(row)}
    missing = [f"T {length}" for length in published if length not in seen]
    if rule["of"] == "all":
        missing += [name for name in _backends(rule) if name not in seen]
    return _combine(rule["of"], outcomes, missing, rule.get("min_settings", 1), _wanted(rule))


def judge_exponent(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Least-squares slope of log time over log length at a fixed window, for every backend, window and delta.

    The steepest slope that the p10-p90 intervals allow must stay within at_most + margin; it fails if the flattest
    does not.
    """
    series: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        long_enough = (row.get("seqlen") or 0) >= rule["min_windows"] * (row.get("window") or math.inf)
        if _asked_for(row, rule) and long_enough and _interval(row, rule["measure"]):
            key = (_id(row), row.get("window"), row.get("delta"), *(value for value in shape_of(row)[:-1]))
            series.setdefault(key, {})[row["seqlen"]] = row
    outcomes = []
    seen = set()
    for key, by_length in series.items():
        if len(by_length) < rule["min_points"]:
            continue
        flat, steep = _slopes(by_length, rule["measure"])
        limit = rule["at_most"] + terms.margin
        verdict = "HOLDS" if steep <= limit else "FAILS" if flat > limit else "NOT_SEPARATED"
        outcomes.append((verdict, f"T^{flat:.2f} to T^{steep:.2f} (at most {limit:.2f}) {key[0]} w {key[1]} {key[2]}"))
        seen.add(key[0])
    missing = [name for name in _backends(rule) if name not in seen]
    wanted = f"{rule['min_points']} lengths of at least {rule['min_windows']} windows for {rule['backend']}"
    return _combine("all", outcomes, missing, 1, wanted)


def judge_passed(rule: Rule, terms: Terms, rows: list[Row]) -> Finding:
    """Every row of the function that the gate judged must have PASSED.

    The reference is the yardstick and the masked baseline skips nothing: neither is evidence."""
    passes = rule["passes"].split(",")
    judged = [
        row
        for row in rows
        if row.get("function") == rule["function"]
        and row.get("backend") not in ("reference", "sdpa-masked")
        and row.get("pass") in passes
        and row.get("status") in ("PASSED", "INCORRECT")
    ]
    wrong = [row for row in judged if row["status"] == "INCORRECT"]
    if wrong:
        named = ", ".join(f"{_id(row)} {row['pass']} T {row.get('seqlen')}" for row in wrong[:4])
        return Finding("FAILS", f"{len(wrong)} of {len(judged)} rows are INCORRECT: {named}")
    missing = [name for name in passes if name not in {row["pass"] for row in judged}]
    if missing:
        return Finding("NO_ROWS", f"no judged {rule['function']} rows of pass {', '.join(missing)}")
    return Finding("HOLDS", f"all {len(judged)} judged rows PASSED")


KINDS = {
    "speedup": Kind(
        judge_speedup,
        ("backend", "baseline", "measure", "of"),
        ("at_least", "figure", "series", "device", "min_seqlen", "min_settings", "pass"),
    ),
    "exponent": Kind(
        judge_exponent, ("backend", "measure", "at_most", "min_windows", "min_points"), ("pass", "device")
    ),
    "passed": Kind(judge_passed, ("function", "passes"), ()),
    "lead": Kind(judge_lead, ("task", "others"), ("attention", "where", "not_behind", "behind", "wilson", "sparse")),
    "lead-growth": Kind(judge_lead_growth, ("task", "others", "base", "lengths"), ("attention", "where")),
    "inference": Kind(judge_inference, ("task", "min_seqlen", "faster_by"), ("attention", "where")),
    "prediction": Kind(judge_prediction, ("task", "attention", "predicted", "learned"), ("where",)),
    "loss": Kind(judge_loss, ("task", "others"), ("attention", "where")),
    "loss-lead": Kind(judge_loss_lead, ("task", "others"), ("attention", "where", "least_tokens")),
    "loss-lead-growth": Kind(judge_loss_lead_growth, ("task", "others"), ("attention", "where")),
    "overlap": Kind(judge_overlap, ("task", "variant", "control", "within"), ()),
}


def _asked_for(row: Row, rule: Rule) -> bool:
    return (
        _id(row) in _backends(rule)
        and row.get("status") == "PASSED"
        and row.get("level") in (None, "kernel")  # claims of speed are about kernels
        and not row.get("padded_heads")
        and ("pass" not in rule or row.get("pass") == rule["pass"])
        and (row.get("seqlen") or 0) >= rule.get("min_seqlen", 1)
        and str(rule.get("device", "")).lower() in str(row.get("device") or "").lower()
    )


def _interval(row: Row | None, measure: str) -> tuple[float, float] | None:
    """p10 and p90 of the measure. They are stored for the total; a part gets the same relative spread. Without them
    there is no interval and so no verdict."""
    if row is None or any(not row.get(field) for field in (measure, "total_ms", "p10_ms", "p90_ms")):
        return None
    share = row[measure] / row["total_ms"]
    return row["p10_ms"] * share, row["p90_ms"] * share


def _slopes(by_length: dict[int, Row], measure: str) -> tuple[float, float]:
    """The flattest and the steepest least-squares slope within the intervals: the slope is a weighted sum of the log
    times, so each point takes the end of its interval that its weight asks for."""
    logs = [math.log(length) for length in by_length]
    centre = sum(logs) / len(logs)
    scale = sum((x - centre) ** 2 for x in logs)
    flat = steep = 0.0
    for x, row in zip(logs, by_length.values(), strict=True):
        low, high = _interval(row, measure) or (math.nan, math.nan)
        ends = [(x - centre) / scale * math.log(end) for end in (low, high)]
        flat, steep = flat + min(ends), steep + max(ends)
    return flat, steep


def _combine(of: str, outcomes: list[tuple[str, str]], missing: list[str], least: int, wanted: str) -> Finding:
    counts = {name: sum(verdict == name for verdict, _ in outcomes) for name in ("HOLDS", "FAILS", "NOT_SEPARATED")}
    total = len(outcomes)
    if total < least:
        return Finding(
            "NO_ROWS", f"{total or 'no'} comparable rows ({wanted})" + (f", {least} needed" if total else "")
        )
    detail = f"{counts['HOLDS']} of {total} settings hold, {counts['FAILS']} fail: "
    detail += "; ".join(text for _, text in outcomes[:6]) + (f"; and {total - 6} more" if total > 6 else "")
    if of == "all":
        if counts["FAILS"]:
            return Finding("FAILS", detail)
        if missing:
            return Finding("NO_ROWS", f"not measured: {', '.join(missing)} ({detail})")
        return Finding("HOLDS" if counts["HOLDS"] == total else "NOT_SEPARATED", detail)
    enough = 1 if of == "any" else total // 2 + 1
    if counts["HOLDS"] >= enough:
        return Finding("HOLDS", detail)
    return Finding("FAILS" if total - counts["FAILS"] < enough else "NOT_SEPARATED", detail)


def _wanted(rule: Rule) -> str:
    words = [rule["backend"], "against", rule["baseline"]]
    words += [f"in the shape of {rule['figure']}"] if "figure" in rule else []
    words += [f"on {rule['device']}"] if "device" in rule else []
    words += [f"from T {rule['min_seqlen']}"] if "min_seqlen" in rule else []
    return " ".join(words)


def _backends(rule: Rule) -> list[str]:
    return str(rule["backend"]).split(",")


def _id(row: Row) -> str:
    return f"{row.get('function')}/{row.get('backend')}"
