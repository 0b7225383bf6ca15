"""Scores of a trained model over lengths, depths and kinds of needles: one row for each, without generation."""

import inspect
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmabench.tasks.haystacks import KINDS, Haystacks, counts
from dmabench.tasks.inference import timed_forward
from dmabench.tasks.recipe import autocast
from dmabench.tasks.scoring import Predictions, at_labels, predict
from dmabench.tasks.task import Row, Tools
from dmabench.tasks.text_haystacks import TextHaystacks

EFFECTIVE = 0.856
"""Mean accuracy over depths up to which a length counts as effective: RULER's threshold (arXiv 2404.06654)."""
FORWARD_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 18}
"""Tokens a forward: as many sequences as fit, at least one."""


def score(
    model_at: Callable[[int], Any],
    haystacks: Haystacks | TextHaystacks,
    kinds: tuple[str, ...],
    lengths: tuple[int, ...],
    depths: tuple[int, ...],
    samples: int,
    told: Callable[[int, int], None] = lambda done, cells: None,
    logits: Callable[[Any, Tensor, Tensor], Tensor] = at_labels,
    most: int | None = None,
) -> Iterator[Row]:
    """Rows of each length, kind and depth, on the first `samples` examples, whose hay is the same at every depth.

    Args:
        model_at: length -> the model to score there.
        told: called with the cells done and all of them.
        logits: as scoring.predict takes it.
        most: sequences a forward.
    """
    cells = len(lengths) * len(kinds) * len(depths)
    values = haystacks.candidates
    for number, length in enumerate(lengths):
        model = model_at(length)
        forward = rows_at_once(next(model.parameters()).device.type, length, most)
        for place, (kind, depth) in enumerate((kind, depth) for kind in kinds for depth in depths):
            made = haystacks.batch(kind, length, np.arange(samples), depth)
            found = predict(model, made.input_ids, made.labels, forward, values, logits)
            yield {
                "test_len": length,
                "kind": kind,
                "depth": depth,
                **_cell(found, made.own),
                "chance": haystacks.chance,
                "candidates": len(values),
                "copy_chance": 1 / counts(kind, haystacks.needles)[0] if KINDS[kind].several else None,
            }
            told(number * len(kinds) * len(depths) + place + 1, cells)


def rows_at_once(device: str, length: int, most: int | None = None) -> int:
    """Sequences of so many tokens that a forward takes, `most` at most."""
    fitting = max(1, FORWARD_TOKENS["cuda" if device == "cuda" else "cpu"] // length)
    return fitting if most is None else min(fitting, most)


def timed(
    model: Any, haystacks: Haystacks | TextHaystacks, kind: str, length: int, tools: Tools, most: int | None = None
) -> Row:
    """Milliseconds of one forward of as many test sequences as a scoring forward has."""
    if tools.time_ms is None:
        return {"infer_ms": None, "infer_batch": None, "infer_replayed": None}
    device = next(model.parameters()).device
    batch = rows_at_once(device.type, length, most)
    input_ids = haystacks.batch(kind, length, np.arange(batch)).input_ids.to(device)
    last = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}

    @torch.no_grad()
    def forward() -> Any:
        with autocast(device, "bf16"):
            return model(input_ids=input_ids, use_cache=False, **last).logits

    if isinstance(haystacks, TextHaystacks):  # a model of any size and make: as its users call it
        return {"infer_ms": tools.time_ms(forward), "infer_batch": batch, "infer_replayed": False}
    return timed_forward(forward, device, batch, tools)


def takes_logits_to_keep(model: Any) -> bool:
    """Whether a model can leave out the logits of all but the last tokens."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _cell(found: Predictions, own: Tensor) -> Row:
    """Scores of the first needle's answer, whose labels are `own`, bool [samples, T]."""
    first = found.subset(own[found.example, found.position])
    score = first.score()
    return {
        "accuracy": score.exact_match,
        "correct": score.exact,
        "total": score.examples,
        "token_accuracy": score.accuracy,
        "all_questions": found.score().exact_match,
        "logprob": score.logprob / score.examples,
        "rank": float((first.rank.double() + 1).mean()),
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
