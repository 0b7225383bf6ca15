"""The sections of a report about lm-eval's benchmarks: scores of models, what was asked of them, the paper's beside."""

from collections.abc import Sequence
from typing import Any

from dmabench.evals.significance import compare
from dmabench.evals.tables import ASKED, BESIDE, REPORTED, SCORES, audits, beside_paper, notes, scores
from dmabench.report.parts import about_run, table
from dmabench.store.rows import FAILURES, STATUSES

Row = dict[str, Any]
COMMAND = "eval"
ABOUT = "Trained models on lm-eval's tasks: prompts and metrics are lm-eval's own. Models are columns."
NEEDS = "Items of this project, which need nothing, and the paper's tasks on checkpoints of yours"
COMMANDS = ("dmabench eval --tasks sample", "dmabench eval --model DIR --model DIR --suite paper --shots 0,5")


def is_eval_run(manifest: dict[str, Any]) -> bool:
    """Was the run made by `dmabench eval`?"""
    return manifest.get("command") == COMMAND


def eval_section(
    name: str, manifest: dict[str, Any], rows: list[Row], samples: list[Row], damaged: int
) -> dict[str, Any]:
    """What the template shows of one run: facts, notes, tables.

    Args:
        samples: the scores of examples (run_folder.read_samples), for paired tests.
    """
    p_values = compare(rows, samples)
    return {
        "task": COMMAND,
        **about_run(name, manifest, damaged),
        "notes": notes(rows, p_values) if rows else ["no task was scored"],
        "tables": tables(rows, p_values),
        "charts": [],
        "no_charts": None,
    }


def eval_group(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All runs, with the commands that make one where there is none."""
    mine = [section for section in sections if section.get("task") == COMMAND]
    words = {"name": COMMAND, "title": "Benchmarks of language models", "about": ABOUT, "needs": NEEDS}
    return words | {"runs": mine, "commands": COMMANDS}


def tables(rows: list[Row], p_values: dict[Any, float]) -> list[dict[str, Any]]:
    """Scores, what the examples asked, and the paper's scores beside ours; those that have a line."""
    headers, cells = scores(rows, p_values)
    found = [table(SCORES, headers, cells, [_state(line[4:]) for line in cells], (*headers[:1], "metric"))]
    headers, cells = audits(rows)
    found.append(table(ASKED, headers, cells, [""] * len(cells), ("task", "models")))
    beside = beside_paper(rows)
    if beside:
        headers, cells = beside
        # What others reported is grey beside what was measured here.
        states = ["reported" if line[0].endswith(REPORTED) else "" for line in cells]
        found.append(table(BESIDE, headers, cells, states, headers[:1]))
    return [one for one in found if one["cells"]]


def _state(line: Sequence[str]) -> str:
    """The status of a line without a score: a failure before what was merely not possible."""
    told = sorted((cell for cell in line if cell in STATUSES), key=lambda status: status not in FAILURES)
    return told[0] if told else ""
