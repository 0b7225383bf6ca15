"""The report in five sentences, computed from the rows: kernels, recall, needles, language, claims.

A sentence is about one run, or names the run of each of its numbers; nothing is averaged over machines or commits. One
whose rows are absent says so, and has the command that makes them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dmabench.claims.verdicts import VERDICTS, Verdict
from dmabench.evals.significance import name_of as model_of
from dmabench.evals.tables import is_share
from dmabench.report.reading import Stored
from dmabench.report.summary_kernels import kernels
from dmabench.summaries.controls import CONTROL
from dmabench.summaries.quality import SUBJECT, qualities
from dmabench.summaries.task_layout import length, share
from dmabench.summaries.tasks import extrapolation
from dmabench.tasks import registry
from dmabench.tasks.task import Task

Row = dict[str, Any]
COMMANDS = {
    "Kernels": "dmabench kernels --preset h100 --replay",
    "Recall": "dmabench mqar --pairs 512",
    "Needles": "dmabench needle --extrapolate",
    "Language": "dmabench train --data synthetic",
    "Downstream": "dmabench eval --tasks sample",
    "Claims": "dmabench list claims",
}
NAMES = {"mha": "MHA", "swa": "SWA", "mla": "MLA", "nsa": "NSA", "dma": "DMA"}


class Sentence(NamedTuple):
    """What it is about, what it says, and (where rows are absent) the command that ends it; "" for none."""

    topic: str
    text: str
    command: str = ""

    def markdown(self) -> str:
        """As a line of a list; names in it make no HTML."""
        text = self.text.replace("<", "&lt;")
        return f"- **{self.topic}**: {text}" + (f" `{self.command}`." if self.command else "")


def sentences(stored: Sequence[Stored], judged: Sequence[Verdict]) -> list[Sentence]:
    """Five sentences, in this order: kernels, recall, needles, language and benchmarks, claims."""
    timed = kernels(stored)
    absent = "no run here timed DMA's kernels beside a dense backend; this does:"
    return [
        Sentence("Kernels", timed) if timed else Sentence("Kernels", absent, COMMANDS["Kernels"]),
        _of_task("Recall", ("mqar",), stored, _recall, "no run here trained a model on recall; this does:"),
        _of_task("Needles", ("needle",), stored, _needles, "no run here searched for needles; this does:"),
        _language(stored),
        _claims(judged),
    ]


def _of_task(
    topic: str,
    names: Sequence[str],
    stored: Sequence[Stored],
    tell: Callable[[Task, Stored], str | None],
    absent: str,
) -> Sentence:
    """What the run with the most scored rows says, the latest of equals."""
    runs = [one for one in stored if one.command in names and any(row.get("status") == "PASSED" for row in one.rows)]
    if not runs:
        return Sentence(topic, absent, COMMANDS[topic])
    chosen = max(runs, key=lambda one: (sum(row.get("status") == "PASSED" for row in one.rows), one.started, one.name))
    try:
        task = registry.get(chosen.command)
    except Exception as error:  # whatever importing another package's task may raise
        return Sentence(topic, f"the task {chosen.command} cannot be loaded ({type(error).__name__}).")
    told = tell(task, chosen)
    if told is None:
        text = f"{chosen.where} has rows of {chosen.command}, but none of MHA and {SUBJECT} alike; this has both:"
        return Sentence(topic, text, COMMANDS[topic])
    more = f", of {len(runs)} runs the one with the most rows" if len(runs) > 1 else ""
    return Sentence(topic, f"{told} ({chosen.where}{more}).")


def _recall(task: Task, stored: Stored) -> str | None:
    panel = _hardest(qualities(task, stored.rows))
    if panel is None:
        return None
    first = panel[0]
    place = ", ".join(filter(None, [f"T {length(first['seqlen'])}", first["setting"], first["model"]]))
    if any(row["status"] != "PASSED" for row in panel):
        return f"MHA itself has not learned it in any setting (UNDERTRAINED, {place}): nothing can be said of DMA"
    told = [f"{_named(row)} {share(row['quality'])}" for row in _ordered(panel)]
    return f"at {place}, of the questions {_listed(told)} are answered right, {_seeds(panel)}"


def _needles(task: Task, stored: Stored) -> str | None:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in extrapolation(task, stored.rows):
        if row["lengths"] and row.get("model") is None:
            groups.setdefault((row.get("train_len") or 0, row.get("kind")), []).append(row)
    both = [key for key, rows in groups.items() if {CONTROL, SUBJECT} <= {row.get("attention") for row in rows}]
    if not both:
        return None
    longest = max(key[0] for key in both)
    rows = groups[next(key for key in both if key[0] == longest)]  # the first kind that it has
    place = f"{rows[0].get('kind')} needles, trained at {length(longest)}"
    if any(row.get("status") != "PASSED" for row in rows):
        return f"MHA itself has not learned {place} (UNDERTRAINED): nothing can be said of DMA"
    tested = length(max(max(row["lengths"]) for row in rows))
    beyond = any(row["beyond"] is not None for row in rows)
    told = [
        f"{_named(row)} {share(row['within'])}" + (f" and {share(row['beyond'])}" if row["beyond"] is not None else "")
        for row in _ordered(rows)
    ]
    what = f"at trained lengths and beyond, up to {tested}," if beyond else "at trained lengths (none beyond was asked)"
    return f"{place}: {what} {_listed(told)} are found, {_seeds(rows)}"


def _language(stored: Sequence[Stored]) -> Sentence:
    """Held-out text and benchmarks in one sentence; what is missing has its command."""
    absent = "no run here trained a language model"
    text = _of_task("Language", ("train", "scaling"), stored, _perplexity, absent)
    told = text.text.removesuffix(".").removesuffix("; this has both:")
    scored = [one for one in stored if one.command == "eval" and any(row.get("status") == "PASSED" for row in one.rows)]
    if scored:
        latest = max(scored, key=lambda one: (one.started, one.name))
        told += f"; {_benchmarks(latest.rows)} ({latest.where})"
        return Sentence("Language", f"{told}; this does:" if text.command else f"{told}.", text.command)
    both = f"{text.command} && {COMMANDS['Downstream']}" if text.command else COMMANDS["Downstream"]
    return Sentence(
        "Language", f"{told}; no benchmark was scored; {'these do' if text.command else 'this does'}:", both
    )


def _perplexity(task: Task, stored: Stored) -> str | None:
    panel = _hardest(qualities(task, stored.rows))
    if panel is None:
        return None
    first = panel[0]
    place = ", ".join(filter(None, [f"T {length(first['seqlen'])}", first["setting"], first["model"]]))
    told = [f"{_named(row)} {row['quality']:.4g}" for row in _ordered(panel)]
    return f"at {place}, held-out perplexity is {_listed(told)}, {_seeds(panel)}"


def _benchmarks(rows: Sequence[Row]) -> str:
    """How many benchmarks, and each model's mean over the shares that all models have."""
    scores: dict[str, dict[tuple[Any, ...], float]] = {}
    for row in rows:
        if row.get("status") == "PASSED" and row.get("value") is not None and is_share(row.get("metric")):
            scores.setdefault(model_of(row), {})[row.get("task"), row.get("shots"), row.get("metric")] = row["value"]
    tasks = {row.get("task") for row in rows if row.get("status") == "PASSED"}
    count = f"{len(tasks)} benchmark{'s' * (len(tasks) != 1)}"
    shared = set.intersection(*(set(of_model) for of_model in scores.values())) if scores else set()
    if not shared:
        return f"{count} scored"
    means = [f"{name} {100 * sum(of[key] for key in shared) / len(shared):.1f}" for name, of in scores.items()]
    return f"on {count} {_listed(means)} percent, the mean of {len(shared)} scores"


def _claims(judged: Sequence[Verdict]) -> Sentence:
    """Each claim once: what all its runs say, or that they differ."""
    by_claim: dict[str, set[str]] = {}
    for one in judged:
        by_claim.setdefault(one.claim.id, set()).add(one.verdict)
    counts = Counter("differ" if len(found) > 1 else next(iter(found)) for found in by_claim.values())
    told = [f"{counts[name]} {name}" for name in VERDICTS[:-1] if counts[name]]
    told += [f"{counts['differ']} that differ between runs"] * bool(counts["differ"])
    unmeasured = counts["NO_ROWS"]
    told += [f"{unmeasured} NO_ROWS"] * bool(unmeasured)
    text = f"the verdicts on {len(by_claim)} registered claims are {_listed(told)}"
    return (
        Sentence("Claims", f"{text}; their commands:", COMMANDS["Claims"])
        if unmeasured
        else Sentence("Claims", f"{text}.")
    )


def _hardest(scored: Sequence[Row]) -> list[Row] | None:
    """The setting with both MHA and DMA that is longest, those first whose control has learned; None for none."""
    panels: dict[tuple[Any, ...], list[Row]] = {}
    for row in scored:
        panels.setdefault((row["setting"], row["seqlen"]), []).append(row)
    both = [rows for rows in panels.values() if {CONTROL, SUBJECT} <= {row["attention"] for row in rows}]
    if not both:
        return None
    return max(both, key=lambda rows: (all(row["status"] == "PASSED" for row in rows), rows[0]["seqlen"], len(rows)))


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """DMA first, from its smallest window; then MHA and the others."""
    kinds = [SUBJECT, CONTROL, *NAMES]
    known = {kind: at for at, kind in reversed(list(enumerate(kinds)))}
    return sorted(rows, key=lambda row: (known.get(row["attention"], len(kinds)), row.get("window") or 0))


def _named(row: Row) -> str:
    name = NAMES.get(row["attention"], str(row["attention"]))
    return f"{name} (w {length(row['window'])})" if row.get("window") else name


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({row["seeds"] for row in rows if row.get("seeds")})
    return f"{'-'.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} seed{'s' * (counts != [1])}" if counts else ""


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
