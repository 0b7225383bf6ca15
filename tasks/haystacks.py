"""Haystacks with needles in them: token sequences whose questions, at the end, are answered from one place each.

    ... filler <key> k <value 1> v1 v2 v3 filler filler ... <query> k <value 1> v1 v2 [v3]

The haystack is noise with Zipf's frequencies. Keys, values, fillers and marks are tokens of their own, so a needle's
tokens are nowhere in the hay. A question repeats the needle behind another mark: its answer tokens are labels, and
all but the last are input too (teacher forcing). Everything is a pure function of seed, split and example number, so
every attention meets the same haystacks, and a longer haystack starts with the hay of a shorter one.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dmabench.tasks.random_tokens import I64, below, distinct, key, uniform, zipf

ANSWER = 3
"""Tokens of an answer."""
NEEDLE = 3 + ANSWER
"""Tokens of a needle, and of a question: mark, key, mark, answer."""
KEY, QUERY, VALUE = 1, 2, 3
"""Marks; token 0 is padding. A multi-value needle's second value has the mark VALUE + 1, and so on: one key then has
several answers, and still each question only one."""
FIRST = 0.4
"""Share of the steps in which training has single needles alone."""
LEAST_FILLERS = 16
"""Kinds of hay: with fewer, Zipf's frequencies say nothing."""


@dataclass(frozen=True)
class Kind:
    """One way to hide and to ask, after RULER (arXiv 2404.06654)."""

    several: bool
    """More needles than one in the haystack."""
    same_key: bool
    """All needles have one key, and their values are numbered."""
    asks_all: bool
    """Each needle has its question, in random order; otherwise only the first has."""


KINDS = {
    "single": Kind(several=False, same_key=False, asks_all=False),
    "multi-key": Kind(several=True, same_key=False, asks_all=False),
    "multi-value": Kind(several=True, same_key=True, asks_all=True),
    "multi-query": Kind(several=True, same_key=False, asks_all=True),
}


@dataclass(frozen=True)
class Batch:
    """Examples of one kind and length."""

    input_ids: Tensor
    """int64 [n, T]."""
    labels: Tensor
    """int64 [n, T]: the token to be predicted at each place, -100 for none."""
    needles: I64
    """[n, needles]: the place of each needle's first token. The first needle is the one at the depth asked for."""
    answers: I64
    """[n, questions, ANSWER]: places whose labels are the answers. The first question is the first needle's, wherever
    it stands."""

    @property
    def own(self) -> Tensor:
        """bool [n, T]: labels that are the answer of the first needle."""
        return torch.zeros_like(self.labels, dtype=torch.bool).scatter_(1, torch.from_numpy(self.answers[:, 0]), True)


@dataclass(frozen=True)
class Haystacks:
    """All examples of a seed and a split ("train", "validation", "test").

    Raises:
        ValueError: a vocabulary too small for the needles.
    """

    vocab: int
    needles: int
    """Needles of the kinds that have several."""
    seed: int
    split: str

    def __post_init__(self) -> None:
        if self.needles < 2:
            raise ValueError(f"needles must be at least 2, got {self.needles}: with one, all kinds are the single kind")
        if self.vocab < (least := least_vocab(self.needles)):
            raise ValueError(
                f"a vocabulary of {self.vocab} is too small for {self.needles} needles of one key and {ANSWER} values "
                f"that differ, beside marks and hay: {least} is the least"
            )

    @cached_property
    def ranges(self) -> dict[str, range]:
        """Tokens that are keys, values and fillers: two quarters and a half of what the marks leave."""
        first = VALUE + self.needles
        quarter = (self.vocab - first) // 4
        ends = first + quarter, first + 2 * quarter
        return {"keys": range(first, ends[0]), "values": range(*ends), "fillers": range(ends[1], self.vocab)}

    @property
    def candidates(self) -> Tensor:
        """Tokens that an answer is made of, int64 [K]."""
        return torch.tensor(self.ranges["values"])

    @property
    def chance(self) -> float:
        """Of guessing an answer without having read it."""
        return 1 / math.prod(len(self.ranges["values"]) - taken for taken in range(ANSWER))

    def batch(self, kind: str, length: int, rows: I64, depth: float | None = None) -> Batch:
        """Examples by their numbers.

        Args:
            length: tokens of each, questions included.
            depth: percent of the hay before the first needle; None: uniform, as are the other needles always.

        Raises:
            ValueError: an unknown kind, a length that is too short, a depth outside 0 to 100.
        """
        if kind not in KINDS:
            raise ValueError(f"no kind {kind!r}; known are {', '.join(KINDS)}")
        if length < (least := least_length(kind, self.needles)):
            raise ValueError(f"length {length} is too short for {kind}: {least} is the least with its needles")
        if depth is not None and not 0 <= depth <= 100:
            raise ValueError(f"depth {depth} is not within 0 to 100 percent")
        count, asked = counts(kind, self.needles)
        needles = self._needles(kind, rows)
        hay = length - asked * NEEDLE + 1
        starts = self._starts(rows, count, hay - count * NEEDLE, depth)
        tokens = np.empty((len(rows), length + 1), np.int64)
        tokens[:, :hay] = self._hay(rows, needles, starts, hay)
        order = np.argsort(uniform(self._key("order"), rows, asked), axis=1)  # of the questions
        questions = np.take_along_axis(needles, order[:, :, None], 1)
        questions[:, :, 0] = QUERY
        tokens[:, hay:] = questions.reshape(len(rows), -1)
        places = hay + np.argsort(order, axis=1)[:, :, None] * NEEDLE + np.arange(NEEDLE - ANSWER - 1, NEEDLE - 1)
        labels = np.full((len(rows), length), -100, np.int64)
        flat = places.reshape(len(rows), -1)
        np.put_along_axis(labels, flat, np.take_along_axis(tokens, flat + 1, 1), 1)
        return Batch(torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(labels), starts, places)

    def _needles(self, kind: str, rows: I64) -> I64:
        """Tokens [n, needles, NEEDLE]. No key and no value occurs twice, save the one key of multi-value."""
        count, _ = counts(kind, self.needles)
        keys = distinct(self._key("keys"), rows, 1 if KINDS[kind].same_key else count, len(self.ranges["keys"]))
        values = distinct(self._key("values"), rows, count * ANSWER, len(self.ranges["values"]))
        needles = np.empty((len(rows), count, NEEDLE), np.int64)
        needles[:, :, 0] = KEY
        needles[:, :, 1] = self.ranges["keys"].start + keys
        needles[:, :, 2] = VALUE + (np.arange(count) if KINDS[kind].same_key else 0)
        needles[:, :, 3:] = self.ranges["values"].start + values.reshape(len(rows), count, ANSWER)
        return needles

    def _starts(self, rows: I64, count: int, fillers: int, depth: float | None) -> I64:
        """First places [n, count] of needles dropped into the gaps between so many fillers."""
        gaps = below(self._key("gaps"), rows, count, fillers + 1)
        if depth is not None:
            gaps[:, 0] = round(depth / 100 * fillers)
        # Needles in one gap: at depth 0 the first needle comes before the others, elsewhere after them.
        ties = np.broadcast_to(np.arange(count), gaps.shape) if depth == 0 else -np.arange(count)[None]
        order = np.lexsort((np.broadcast_to(ties, gaps.shape), gaps), axis=1)
        return gaps + np.argsort(order, axis=1) * NEEDLE

    def _hay(self, rows: I64, needles: I64, starts: I64, length: int) -> I64:
        places = (starts[:, :, None] + np.arange(NEEDLE)).reshape(len(rows), -1)
        tokens = np.zeros((len(rows), length), np.int64)
        np.put_along_axis(tokens, places, needles.reshape(len(rows), -1), 1)
        free = tokens == 0
        fillers = self.ranges["fillers"]
        drawn = zipf(self._key("hay"), rows, length - places.shape[1], len(fillers))
        tokens[free] = (fillers.start + drawn).reshape(-1)
        return tokens

    def _key(self, what: str) -> int:
        return key("needle", self.seed, self.split, what)


@dataclass(frozen=True)
class TrainingExamples:
    """Examples of one length and of kinds drawn evenly, with uniform depths (the protocol `tasks.task.Examples`)."""

    by_many = True
    """Several threads may ask for batches at once."""
    haystacks: Haystacks
    kinds: tuple[str, ...]
    length: int

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels, int64 [size, length], of examples step * size and following."""
        rows = np.arange(step * size, (step + 1) * size)
        chosen = below(key("needle", self.haystacks.seed, self.haystacks.split, "kinds"), rows, 1, len(self.kinds))
        input_ids, labels = (torch.empty(size, self.length, dtype=torch.long) for _ in range(2))
        for number, kind in enumerate(self.kinds):
            own = chosen[:, 0] == number
            if own.any():
                made = self.haystacks.batch(kind, self.length, rows[own])
                input_ids[own], labels[own] = made.input_ids, made.labels
        return input_ids, labels


@dataclass(frozen=True)
class Curriculum:
    """Training examples of the simplest kind for the first steps, then of all.

    To copy what follows a key is learned much sooner where there is one needle alone: with 150 such steps first, dense
    attention of two layers learned all kinds at a length of 128 in 250 steps of 16, else in 500 (CPU, torch 2.15).
    """

    by_many = True
    examples: TrainingExamples
    steps: int
    """Of the whole training."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """As TrainingExamples.batch."""
        early = step < self.steps * FIRST and "single" in self.examples.kinds
        return (replace(self.examples, kinds=("single",)) if early else self.examples).batch(step, size)


def counts(kind: str, needles: int) -> tuple[int, int]:
    """Needles and questions of a kind."""
    count = needles if KINDS[kind].several else 1
    return count, count if KINDS[kind].asks_all else 1


def least_length(kind: str, needles: int) -> int:
    """Tokens of the shortest example: its needles, as much hay as needles, and the questions."""
    count, asked = counts(kind, needles)
    return 2 * count * NEEDLE + asked * NEEDLE - 1


def least_vocab(needles: int) -> int:
    """Tokens that `needles` needles take at least."""
    quarter = max(needles * ANSWER, LEAST_FILLERS // 2)
    return VALUE + needles + 4 * quarter
