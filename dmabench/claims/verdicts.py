"""Every claim with its rule (claims.yaml), judged by the rows that were measured. The rules are in rules.py."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmabench.claims.finding import Finding, Terms
from dmabench.claims.rules import KINDS
from dmabench.errors import Refusal
from dmabench.summaries.reported import figure, reported_beside, reported_table

__all__ = ["VERDICTS", "Claim", "Verdict", "load_claims", "reported_beside", "reported_table", "verdicts"]

FILE = Path(__file__).with_name("claims.yaml")
SCHEMA = 1
VERDICTS = ("HOLDS", "FAILS", "NOT_SEPARATED", "NOT_TESTABLE", "NO_ROWS")
REQUIRED = ("id", "source", "statement", "metric", "command", "margin", "minimum_seeds", "validity", "verdict")
OPTIONAL = ("rule", "not_testable", "note")


@dataclass(frozen=True)
class Claim:
    """One claim, as registered before any result. `margin` is in the metric's unit (a share, for ratios)."""

    id: str
    group: str
    source: str
    statement: str
    metric: str
    command: str
    margin: float
    minimum_seeds: int
    validity: str
    verdict: str
    rule: dict[str, Any] | None = None
    not_testable: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the rows of one run (or none: run is None) say about a claim. `detail` says why in words and numbers."""

    claim: Claim
    verdict: str
    detail: str
    run: str | None = None
    device: str | None = None


def load_claims(path: Path = FILE) -> list[Claim]:
    """The registered claims, in the order of the file.

    Raises Refusal, naming the claim, for an unreadable file, a newer schema, unknown or missing keys, a duplicate id,
    or a rule that rules.py cannot evaluate.
    """
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _bad(path, f"cannot be read ({error})") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("groups"), list):
        raise _bad(path, "has no list `groups`")
    if loaded.get("schema") != SCHEMA:
        raise _bad(path, f"has schema {loaded.get('schema')}, this dmabench reads {SCHEMA}: update dmabench")
    claims: dict[str, Claim] = {}
    for group in loaded["groups"]:
        if not isinstance(group, dict) or not isinstance(group.get("claims"), list):
            raise _bad(path, "has a group without a list `claims`")
        shared = {key: value for key, value in group.items() if key not in ("title", "claims")}
        for entry in group["claims"]:
            claim = _claim(path, str(group.get("title")), {**shared, **entry})
            if claim.id in claims:
                raise _bad(path, f"has two claims with the id {claim.id!r}: rename one")
            claims[claim.id] = claim
    return list(claims.values())


def verdicts(claims: Iterable[Claim], rows: Iterable[dict[str, Any]]) -> list[Verdict]:
    """A verdict for every claim and every run that has rows for it; NO_ROWS, once, for a claim without any.

    Runs are judged apart (machines and commits are never mixed). Claims without a rule are NO_ROWS with the command
    that would make their rows.
    """
    by_run: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row.get("run"), []).append(row)
    found: list[Verdict] = []
    for claim in claims:
        if claim.not_testable:
            found.append(Verdict(claim, "NOT_TESTABLE", claim.not_testable))
            continue
        judged = [_judge(claim, run, of_run) for run, of_run in by_run.items()] if claim.rule else []
        measured = [verdict for verdict in judged if verdict.verdict != "NO_ROWS"]
        why = next((verdict.detail for verdict in judged), "")
        found += measured or [Verdict(claim, "NO_ROWS", f"{why + '; ' if why else ''}measure it: {claim.command}")]
    return found


def _judge(claim: Claim, run: Any, rows: list[dict[str, Any]]) -> Verdict:
    rule = claim.rule or {}
    if "task" in rule and not any(row.get("task") == rule["task"] for row in rows):
        return Verdict(claim, "NO_ROWS", f"no rows of {rule['task']}", run)
    finding: Finding = KINDS[rule["kind"]].judge(rule, Terms(claim.margin, claim.minimum_seeds), rows)
    devices = ", ".join(dict.fromkeys(str(row["device"]) for row in rows if row.get("device")))
    return Verdict(claim, finding.verdict, finding.detail, run, devices or None)


def _claim(path: Path, group: str, fields: dict[str, Any]) -> Claim:
    name = f"claim {fields.get('id')!r}"
    unknown = sorted(set(fields) - set(REQUIRED) - set(OPTIONAL))
    if unknown:
        raise _bad(path, f"{name} has unknown keys: {', '.join(unknown)}")
    missing = [key for key in REQUIRED if fields.get(key) in (None, "")]
    if missing:
        raise _bad(path, f"{name} lacks {', '.join(missing)}")
    margin, seeds, rule = fields["margin"], fields["minimum_seeds"], fields.get("rule")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
        raise _bad(path, f"{name}: margin is {margin!r}, it must be a number of at least 0")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise _bad(path, f"{name}: minimum_seeds is {seeds!r}, it must be a whole number of at least 1")
    if rule is not None:
        _check_rule(path, name, rule)
    return Claim(group=group, **fields)


def _check_rule(path: Path, name: str, rule: Any) -> None:
    if not isinstance(rule, dict) or rule.get("kind") not in KINDS:
        raise _bad(path, f"{name}: its rule needs a kind, one of {', '.join(KINDS)}")
    kind = KINDS[rule["kind"]]
    unknown = sorted(set(rule) - {"kind"} - set(kind.required) - set(kind.optional))
    missing = [key for key in kind.required if key not in rule]
    if unknown or missing:
        words = [f"unknown keys {', '.join(unknown)}"] * bool(unknown) + [f"lacks {', '.join(missing)}"] * bool(missing)
        raise _bad(path, f"{name}: its rule has {' and '.join(words)}")
    if rule["kind"] == "speedup" and ("at_least" in rule) == ("figure" in rule and "series" in rule):
        raise _bad(path, f"{name}: a speedup rule needs either at_least, or figure and series")
    if "figure" in rule:
        try:
            figure(rule["figure"], rule["series"])
        except KeyError as error:
            raise _bad(path, f"{name}: there is no reported figure {error.args[0]}") from None


def _bad(path: Path, what: str) -> Refusal:
    return Refusal(f"{path.name}: {what}. Correct the file; no claim was judged.")
