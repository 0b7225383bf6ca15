"""Tables of trained models for a terminal, and the sentences that belong under them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dmabench.store.rows import FAILURES
from dmabench.summaries.controls import UNDERTRAINED, choose_rates, judged, rate_key, remedy
from dmabench.summaries.scaling import scaling_notes
from dmabench.summaries.task_layout import LEFT, Sheet, length, name_of, share, sheets
from dmabench.summaries.tasks import EFFECTIVE, Row, summaries, varying
from dmabench.summaries.training_speed import speed_notes
from dmabench.tables.kernels import wrapped
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    from rich.table import Table

SEEDS = 3
"""Seeds that a claim about trained models needs at least."""
MOST_REASONS = 6


def tables(task: Task, rows: Sequence[Row], width: int = 100) -> "list[Table]":
    """The rows of a run as rich tables of about `width` columns: one line for each setting, averaged over seeds, with
    the learning rate that validation chose. Cells without a sound control are dim and say UNDERTRAINED."""
    return [_table(sheet) for sheet in sheets(task, rows, width)]


def notes(task: Task, rows: Sequence[Row], width: int | None = None) -> list[str]:
    """What a reader of the tables of this width must know, most important first: what is undertrained, what did not
    run and why, which learning rates were chosen, what the intervals are, where nothing was sparse."""
    if not rows:
        return []
    found = _undertrained(task, rows) + _failures(task, rows) + _rates(task, rows)
    lines = summaries(task, rows)
    headers = {header for sheet in sheets(task, rows, width) for header in sheet.headers}
    counts = {row["seeds"] for row in lines if row["seeds"]}
    if counts:
        words = ["Wilson's 95% for one seed"] * (1 in counts) + ["the range for several"] * (max(counts) > 1)
        intervals = f"; interval: {', '.join(words)}" if "interval" in headers else ""
        found.append(f"accuracy is on test examples, a mean over seeds{intervals}")
        if any(row.get("model") and row.get("haystack") for row in rows):
            found.append("seeds are of the haystacks: each model has the weights of one training")
        elif max(counts) < SEEDS:
            more = "one seed" if counts == {1} else f"{max(counts)} seeds"
            than = "more than the interval says" if intervals else "from seed to seed"
            found.append(f"{more}: weights vary {than}; a claim needs {SEEDS} (--seeds {SEEDS})")
    if any(row.get("test_len") is not None for row in rows):
        found.append(
            "* longer than in training; within, beyond: mean over lengths and depths up to there and after; effective: "
            f"the longest length with at least {EFFECTIVE:g} at it and all shorter ones"
        )
    if "vs MHA" in headers:
        found.append("ms: one forward of a batch of test sequences; vs MHA: its time over this one's, same settings")
    found += speed_notes(task, rows)
    found += _haystacks(rows)
    found += _predictions(task, lines)
    found += scaling_notes(task, rows)
    found += dict.fromkeys(str(row["note"]) for row in rows if row.get("note"))
    dense = [row for row in lines if row.get("sparsity_active") is False and row.get("window")]
    if dense:
        found.append(
            f"{len(dense)} of {len(lines)} lines have a window that no sequence exceeds: nothing is sparse there "
            f"({', '.join(dict.fromkeys(name_of(row) for row in dense))})"
        )
    return found


def _undertrained(task: Task, rows: Sequence[Row]) -> list[str]:
    marked = [row for row in judged(task, rows) if row["status"] == UNDERTRAINED and row["chosen"]]
    if not marked:
        return []
    passed = sum(row.get("status") == "PASSED" for row in rows)
    first = (
        f"UNDERTRAINED, {len(marked)} of {passed} rows that ran: they say nothing about the attentions, and stand in "
    )
    brackets = " (their accuracy is in brackets)" if any(row.get("pattern") for row in marked) else ""
    found = [f"{first}no ordering, claim or verdict{brackets}"]
    differing = varying(task, rows, ("attention", "lr", "seed", *(axis.name for axis in task.axes if axis.of_model)))
    below: dict[str, None] = {}
    missing: dict[str, list[str]] = {}
    for row in marked:
        where = " ".join(f"{name} {length(row[name])}" for name in differing if row.get(name) is not None)
        if row["control"] is None:
            missing.setdefault(row["reason"], []).append(where)
        else:
            below[f"{share(row['control'])}{f' ({where})' if where else ''}"] = None
    if below:
        found.append(f"MHA, the control, needs {task.control:g} and reaches {_some(list(below))}: {remedy(marked)}")
    for reason, places in missing.items():
        told = _some([place for place in dict.fromkeys(places) if place])
        found.append(f"{reason}{f'; {told}' if told else ''}")
    return found


def _haystacks(rows: Sequence[Row]) -> list[str]:
    """Which text needles were hidden in, where it was text."""
    of_text = [row for row in rows if row.get("haystack") == "text" and row.get("status") == "PASSED"]
    if not of_text:
        return []
    made_up = " (made-up words, no language)" if any(row.get("text") == "synthetic" for row in of_text) else ""
    found = [
        f"needles in RULER's wording, hidden in the text {', '.join({row['text']: 0 for row in of_text})}{made_up}"
    ]
    if len({row.get("haystack_key") for row in of_text if row.get("seed") == of_text[0].get("seed")}) > 1:
        found.append("models with other tokenizers met other parts of the text: compare those that share one")
    return found


def _predictions(task: Task, lines: Sequence[Row]) -> list[str]:
    """How many settings came out as their rows predict, and which did not."""
    judged_ones = [
        row for row in lines if row.get("status") == "PASSED" and row.get("predicted") in ("learns", "fails")
    ]
    if not judged_ones:
        return []
    wrong = [row for row in judged_ones if (row["accuracy"] >= task.control) != (row["predicted"] == "learns")]
    differing = varying(task, lines, ("attention", "lr"))
    words = [
        f"{name_of(row)} {' '.join(f'{name} {length(row[name])}' for name in differing if row.get(name) is not None)} "
        f"{row['predicted']}, but reaches {share(row['accuracy'])}"
        for row in wrong
    ]
    told = f"{len(judged_ones) - len(wrong)} of {len(judged_ones)} settings came out as predicted before any result"
    return [f"{told}{'; not: ' + _some(words) if words else ''}"]


def _some(words: list[str]) -> str:
    more = len(words) - MOST_REASONS
    return ", ".join(words[:MOST_REASONS]) + (f" and {more} more" if more > 0 else "")


def _failures(task: Task, rows: Sequence[Row]) -> list[str]:
    """One sentence for each status and reason of cells without a score."""
    by_reason: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("status") != "PASSED":
            by_reason.setdefault((str(row.get("status")), str(row.get("reason") or "no reason stored")), []).append(row)
    told = []
    for (status, reason), of_reason in by_reason.items():
        names = ", ".join(dict.fromkeys(name_of(row) for row in of_reason))
        told.append(f"{status} ({names}; {len(of_reason)} row{'s' * (len(of_reason) != 1)}): {reason}")
    more = len(told) - MOST_REASONS
    return told[:MOST_REASONS] + ([f"and {more} more reasons: the rows have them (--json)"] if more > 0 else [])


def _rates(task: Task, rows: Sequence[Row]) -> list[str]:
    """Which learning rate stands for each attention, and those that were tried and do not."""
    tried: dict[tuple[str, float | None], dict[float, list[float]]] = {}
    chosen = choose_rates(task, rows)
    for row in rows:
        if row.get("status") == "PASSED" and row.get(task.chosen_by) is not None:
            key = (name_of(row), chosen[rate_key(task, row)])
            tried.setdefault(key, {}).setdefault(row["lr"], []).append(row[task.chosen_by])
    several = {key: rates for key, rates in tried.items() if len(rates) > 1}
    if not several:
        return []
    words = []
    for (name, best), rates in several.items():
        others = ", ".join(
            f"{rate:g} ({share(sum(values) / len(values))})" for rate, values in sorted(rates.items()) if rate != best
        )
        own = rates.get(best) if best is not None else None
        reached = f" ({share(sum(own) / len(own))})" if own else ""
        words.append(f"{name} {best:g}{reached}, not {others}" if best is not None else f"{name}: none")
    return [
        f"learning rate chosen on {task.chosen_by.replace('_', ' ')} (in brackets, mean over seeds), reported on test: "
        + "; ".join(words)
    ]


def _table(sheet: Sheet) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # The title is broken between its parts and not inside them.
    lengths = [max(map(len, column)) for column in zip(sheet.headers, *sheet.cells, strict=True)]
    title = wrapped(sheet.title.split(" · "), sum(lengths) + 2 * len(lengths) - 2)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
        title=Text(title, style="bold"),
        title_justify="left",
    )
    for header in sheet.headers:
        table.add_column(header, justify="left" if header in LEFT else "right", no_wrap=True, overflow="ellipsis")
    for cells, state in zip(sheet.cells, sheet.states, strict=True):
        table.add_row(*(Text(cell) for cell in cells), style="red" if state in FAILURES else "dim" if state else "")
    return table
