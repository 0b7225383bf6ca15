"""The tables of an evaluation: scores of several models, what the examples asked of them, the paper's beside ours."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dmabench.evals.significance import Key, line_of, name_of, shown
from dmabench.statistics.intervals import wilson
from dmabench.summaries.reported import reported

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
SIGNIFICANT = 0.05
SCORES = "Scores, ± standard error"
ASKED = "What the examples asked"
BESIDE = "Beside Table 2 of arXiv 2508.02124, reported by others; our ARC is the mean of easy and challenge"
"""Titles of the tables."""
REPORTED, MEASURED = ", reported", ", measured"
"""After the names of models beside the paper's."""
PAPER = {
    "LAMBADA ppl": (("lambada_openai", "perplexity"),),
    "LAMBADA": (("lambada_openai", "acc"),),
    "MMLU": (("mmlu", "acc"),),
    "TriviaQA": (("triviaqa", "exact_match"),),
    "ARC": (("arc_easy", "acc_norm"), ("arc_challenge", "acc_norm")),
    "PIQA": (("piqa", "acc_norm"),),
    "HellaSwag": (("hellaswag", "acc_norm"),),
    "OBQA": (("openbookqa", "acc_norm"),),
    "WinoGrande": (("winogrande", "acc"),),
}
"""Columns of Table 2 (reported.yaml, zero_shot and five_shot; the average follows), and our metrics for each."""
SHOTS = {"zero_shot": 0, "five_shot": 5}


def is_share(metric: str | None) -> bool:
    """Shares (accuracies) are shown in percent; perplexities and bits as they are."""
    return metric is not None and (metric.startswith(("acc", "exact_match")) or metric.isdecimal())


def number(value: float | None, metric: str | None) -> str:
    """A score as tables show it."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4g}" if value < 1e4 else f"{value:.2e}"


def scores(rows: Iterable[Row], p_values: dict[tuple[str, Key], float]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: a line for each task, number of shots and metric; a column for each model.

    Args:
        p_values: of `eval_significance.compare`.
    """
    kept = shown(rows)
    names = list(dict.fromkeys(name_of(row) for row in kept))
    lines: dict[Key, dict[str, Row]] = {}
    failed: dict[Key, dict[str, Row]] = {}
    for row in kept:
        place = lines if row["status"] == "PASSED" else failed
        place.setdefault(line_of(row), {})[name_of(row)] = row
    cells = []
    for line, by_name in lines.items():
        row = next(iter(by_name.values()))
        cells.append(
            [
                row["task"],
                str(row["shots"]),
                _label(row),
                number(row["chance"], row["metric"]),
                *(_score(by_name.get(name), p_values.get((name, line))) for name in names),
            ]
        )
    for (task, shots, *_), by_name in failed.items():
        told = [by_name[name]["status"] if name in by_name else "" for name in names]
        cells.append([task, "" if shots is None else str(shots), "", "", *told])
    return ["task", "shots", "metric", "chance", *names], cells


def audits(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: what the examples of each task asked of each model, models that agree in one line."""
    merged: dict[tuple[str, ...], list[str]] = {}
    for row in shown(rows):
        if row["status"] != "PASSED" or row.get("tokens_mean") is None:
            continue
        part = (
            f"{row['examples']} of {row['of_examples']}"
            if row["examples"] != row["of_examples"]
            else str(row["examples"])
        )
        facts: tuple[str, ...] = (
            row["task"],
            str(row["shots"]),
            part,
            f"{row['tokens_mean']:.0f}",
            str(row["tokens_max"]),
        )
        facts += (_percent(row["truncated"]), _percent(row["sparsity_active"]), _percent(row["density"]))
        names = merged.setdefault(facts, [])
        if name_of(row) not in names:
            names.append(name_of(row))
    headers = ["task", "shots", "examples", "tokens", "longest", "cut %", "sparse %", "density %", "models"]
    return headers, [[*facts, ", ".join(names)] for facts, names in merged.items()]


def beside_paper(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]] | None:
    """Headers and cells of the paper's Table 2 with our models under it, or None where none of its tasks was scored.

    Ours are averaged only where all columns were measured.
    """
    scored = [row for row in rows if row["status"] == "PASSED" and row["data"] != "sample"]
    cells: list[list[str]] = []
    for block, shots in SHOTS.items():
        found = {
            (name_of(row), row["task"], row["metric"]): row["value"]
            for row in scored
            if row["shots"] == shots and row["limit"] is None
        }
        names = list(dict.fromkeys(name for name, *_ in found))
        ours = [_ours(name, found) for name in names]
        if not any(any(line) for line in ours):
            continue
        for attention, values in reported()["pretrain_1_7B"][block].items():
            cells.append([f"{attention} 1.7B{REPORTED}", str(shots), *(f"{value:g}" for value in values)])
        for name, line in zip(names, ours, strict=True):
            if any(line):
                cells.append([f"{name}{MEASURED}", str(shots), *line])
    return (["", "shots", *PAPER, "average"], cells) if cells else None


def _ours(name: str, found: dict[tuple[str, str, str], float]) -> list[str]:
    values: list[float | None] = []
    for parts in PAPER.values():
        of_part = [found.get((name, *part)) for part in parts]
        known = [value for value in of_part if value is not None]
        values.append(sum(known) / len(parts) if len(known) == len(parts) else None)
    shares = [value for column, value in zip(PAPER, values, strict=True) if column != "LAMBADA ppl"]
    whole = [value for value in shares if value is not None]
    mean = sum(whole) / len(shares) if len(whole) == len(shares) else None
    texts = [number(value, metrics[0][1]) for value, metrics in zip(values, PAPER.values(), strict=True)]
    return [*texts, number(mean, "acc")] if whole or values[0] is not None else []


def notes(rows: Iterable[Row], p_values: dict[tuple[str, Key], float]) -> list[str]:
    """What a reader must know of the numbers: sentences, the gravest first."""
    kept = shown(rows)
    scored = [row for row in kept if row["status"] == "PASSED"]
    found = [
        f"{name_of(row)}, {row['task']}: {row['status']}: {row['reason']}" for row in kept if row["status"] != "PASSED"
    ]
    if any(row["data"] == "sample" for row in scored):
        found.append("sample data: a handful of items written for this project; a score on them says nothing")
    untrained = dict.fromkeys(row["model"] for row in scored if row["weights"].startswith("untrained:"))
    if untrained:
        found.append(f"{', '.join(untrained)}: random weights, never trained")
    if any(row["limit"] for row in scored):
        found.append("only the first examples of each task (--limit): not a benchmark result")
    for row in _once(scored):
        where = f"{name_of(row)}, {row['task']}, {row['shots']} shots"
        if row["truncated"]:
            how = "scored in pieces" if row["output_type"] == "loglikelihood_rolling" else "cut from the left"
            found.append(
                f"{where}: {_percent(row['truncated'])}% of the examples are longer than the {row['reads']} tokens "
                f"that the model reads, and were {how}"
            )
        if row["batch_used"] < row["batch"]:
            found.append(f"{where}: memory was enough for batches of {row['batch_used']}, not {row['batch']}")
    dense = [row for row in _once(scored) if row["window"] is not None and not row["sparsity_active"]]
    if dense:
        tasks = ", ".join(dict.fromkeys(row["task"] for row in dense))
        names = ", ".join(dict.fromkeys(f"{name_of(row)} (window {row['window']})" for row in dense))
        found.append(f"no example was longer than the window, so that nothing was sparse: {tasks}, with {names}")
    if any(_at_chance(row) for row in scored):
        found.append("~ not above chance: what guessing gives lies in the score's interval (Wilson, 95%), or above it")
    if p_values:
        found.append(
            "* differs from the first model, where none: not separated. A paired test on the same examples, p < 0.05 "
            "after Holm's correction over tasks (McNemar's exact test for accuracies, sign flips for perplexities)"
        )
    return found


def table(headers: list[str], cells: list[list[str]], title: str, words: tuple[str, ...] = ()) -> "Table":
    """A rich table; columns named in `words` are set left, and the first is."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title=Text(title, style="bold"),
        title_justify="left",
    )
    for at, header in enumerate(headers):
        left = at == 0 or header in words
        made.add_column(Text(header), justify="left" if left else "right", overflow="fold")
    for line in cells:
        made.add_row(*(Text(cell) for cell in line))
    return made


def _label(row: Row) -> str:
    better = "" if row["higher_is_better"] is None else " ↑" if row["higher_is_better"] else " ↓"
    return f"{row['metric']}{' %' if is_share(row['metric']) else ''}{better}"


def _score(row: Row | None, p: float | None) -> str:
    if row is None:
        return ""
    error = f" ±{number(row['stderr'], row['metric'])}" if row["stderr"] is not None else ""
    return (
        number(row["value"], row["metric"]) + error + "~" * _at_chance(row) + "*" * (p is not None and p < SIGNIFICANT)
    )


def _at_chance(row: Row) -> bool:
    if not row["chance"] or row["value"] is None:
        return False
    # An error of 0, where all answers were right, is none: Wilson's interval knows how few they were.
    return wilson(round(row["value"] * row["examples"]), row["examples"]).low <= row["chance"]


def _once(rows: list[Row]) -> list[Row]:
    """One row for each model, task and number of shots."""
    return list({(name_of(row), row["task"], row["shots"]): row for row in rows}.values())


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share in (0, 1) else f"{100 * share:.1f}"
