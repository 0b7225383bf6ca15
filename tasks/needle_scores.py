"""Scores of a trained model over lengths, depths and kinds of needles: one row for each, without generation."""

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch

from dmabench.tasks.haystacks import ANSWER, KINDS, Haystacks, counts
from dmabench.tasks.scoring import Predictions, predict
from dmabench.tasks.task import Row

EFFECTIVE = 0.856
"""Mean accuracy over depths up to which a length counts as effective: RULER's threshold (arXiv 2404.06654)."""
FORWARD_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 18}
"""Tokens a forward: as many sequences as fit, at least one."""


def score(
    model_at: Callable[[int], Any],
    haystacks: Haystacks,
    kinds: tuple[str, ...],
    lengths: tuple[int, ...],
    depths: tuple[int, ...],
    samples: int,
    told: Callable[[int, int], None] = lambda done, cells: None,
) -> Iterator[Row]:
    """Rows of each length, kind and depth, on the first `samples` examples, whose hay is the same at every depth.

    Args:
        model_at: length -> the model to score there.
        told: called with the cells done and all of them.
    """
    cells = len(lengths) * len(kinds) * len(depths)
    values = torch.tensor(haystacks.ranges["values"])
    for number, length in enumerate(lengths):
        model = model_at(length)
        device = next(model.parameters()).device.type
        forward = max(1, FORWARD_TOKENS["cuda" if device == "cuda" else "cpu"] // length)
        for place, (kind, depth) in enumerate((kind, depth) for kind in kinds for depth in depths):
            made = haystacks.batch(kind, length, np.arange(samples), depth)
            found = predict(model, made.input_ids, made.labels, forward, values)
            yield {"test_len": length, "kind": kind, "depth": depth, **_cell(found, made.answers[:, 0], values)} | {
                "copy_chance": 1 / counts(kind, haystacks.needles)[0] if KINDS[kind].several else None
            }
            told(number * len(kinds) * len(depths) + place + 1, cells)


def _cell(found: Predictions, answers: np.ndarray, values: torch.Tensor) -> Row:
    """Scores of the first needle's answer, whose places are answers [samples, ANSWER]."""
    samples, candidates = len(answers), len(values)
    asked = torch.zeros(samples, int(found.position.max()) + 1, dtype=torch.bool)
    asked.scatter_(1, torch.from_numpy(answers), True)
    own = found.subset(asked[found.example, found.position]).score()
    ranks = found.subset(asked[found.example, found.position]).rank.double() + 1
    return {
        "accuracy": own.exact_match,
        "correct": own.exact,
        "total": own.examples,
        "chance": 1 / np.prod([candidates - taken for taken in range(ANSWER)], dtype=float),
        "token_accuracy": own.accuracy,
        "all_questions": found.score().exact_match,
        "logprob": own.logprob / samples,
        "rank": float(ranks.mean()),
        "candidates": candidates,
    }


def summaries(rows: list[Row], trained: int) -> list[Row]:
    """The rows, each with what its kind comes to over depths and lengths.

    within, beyond: mean accuracy at lengths up to the trained one, and above it (None where none was tested).
    beyond_over_within: their ratio. effective_length: the longest length up to which every mean over depths is at
    least EFFECTIVE; 0 where the shortest is below.
    """
    found = []
    for row in rows:
        by_length: dict[int, list[float]] = {}
        for other in rows:
            if other["kind"] == row["kind"]:
                by_length.setdefault(other["test_len"], []).append(other["accuracy"])
        means = {length: fmean(by_length[length]) for length in sorted(by_length)}
        within = [mean for length, mean in means.items() if length <= trained]
        beyond = [mean for length, mean in means.items() if length > trained]
        inside, outside = (fmean(one) if one else None for one in (within, beyond))
        told = {
            "within": inside,
            "beyond": outside,
            "beyond_over_within": outside / inside if inside and outside is not None else None,
            "effective_length": _effective(means),
        }
        found.append({**row, **told})
    return found


def _effective(means: dict[int, float]) -> int:
    effective = 0
    for length, mean in means.items():
        if mean < EFFECTIVE:
            break
        effective = length
    return effective
