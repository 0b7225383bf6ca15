"""Haystacks of text with needles in RULER's wording, built by token count for any tokenizer.

    <introduction> text. text. <needle> text. text. <question> <answer, without its last token>

A haystack is a run of whole sentences out of a text, save the first, which loses its beginning so that the whole has
exactly as many tokens as asked for. Needles stand between sentences. Nothing is repeated or filled up: a text that is
too short is refused. Everything is a pure function of text, tokenizer, seed and example number, so models that share a
tokenizer meet the same haystacks, and a longer haystack ends with the text of a shorter one.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dmabench.tasks import needle_wording as wording
from dmabench.tasks.haystacks import KINDS, counts
from dmabench.tasks.random_tokens import I64, below, distinct, key
from dmabench.tasks.text_pieces import Pieces, sentences

POOL = 16
"""Text that haystacks are taken from, in lengths of the longest one: the beginning. They may overlap in it."""
CHUNK = 500
"""Sentences tokenised at once."""


@dataclass(frozen=True)
class TextBatch:
    """Examples of one kind and length."""

    input_ids: Tensor
    """int64 [n, T]."""
    labels: Tensor
    """int64 [n, T]: the token to be predicted at each place, -100 for none."""
    own: Tensor
    """bool [n, T]: labels that are the answer of the first needle, the one at the depth asked for."""
    depths: tuple[float, ...]
    """[n]: where the first needle stands, in percent of the text."""


@dataclass(frozen=True)
class _Example:
    """What an example is made of, beside its text."""

    needles: tuple[list[int], ...]
    """Tokens of each; of multi-value in the order of the text."""
    ending: list[int]
    """Tokens of question and answer."""
    answers: list[list[int]]
    """Places of each value in `ending`, in the order of the answer."""
    order: tuple[int, ...]
    """Of each value in the answer its needle's number."""
    fixed: int
    """Tokens that are no text, without the last one."""


class TextHaystacks:
    """All examples over a text, up to `longest` tokens."""

    chance = 1 / wording.VALUES
    """Of guessing a value without having read it."""

    def __init__(self, texts: Iterable[str], name: str, pieces: Pieces, needles: int, longest: int, seed: int) -> None:
        """
        Args:
            texts: documents; as many are read as make POOL haystacks.
            name: of the text, for what is raised.
            needles: in kinds that have several.

        Raises:
            ValueError: a text shorter than `longest` tokens, or a number of needles that cannot be.
        """
        if not 2 <= needles <= wording.KEYS:
            raise ValueError(f"--needles {needles}: kinds with several needles have from 2 to {wording.KEYS}")
        self.pieces, self.needles, self.longest, self.seed = pieces, needles, longest, seed
        found = sentences(texts)
        parts: list[list[int]] = []
        total = 0
        while total < POOL * longest and (chunk := [f" {one}" for one in islice(found, CHUNK)]):
            new = [one for one in pieces.behind_stop(chunk) if one]
            parts += new
            total += sum(map(len, new))
        if total < longest:
            raise ValueError(
                f"the text {name} has {total} tokens, too few for a haystack of {longest}: name a longer text (--data) "
                "or shorten --test-len; text is not repeated or filled up"
            )
        self.tokens = np.fromiter((token for part in parts for token in part), np.int64, total)
        self.ends: I64 = np.cumsum([len(part) for part in parts], dtype=np.int64)
        """Places behind each sentence."""
        self.candidates = torch.tensor(pieces.numbers(), dtype=torch.long)
        self._examples: dict[tuple[str, int], _Example] = {}

    def digest(self) -> str:
        """16 hex digits that two models share if they meet the same haystacks."""
        told = repr((self.pieces.begin, self.needles, self.longest, self.seed)).encode()
        return hashlib.sha256(told + self.tokens.tobytes()).hexdigest()[:16]

    def least(self, kind: str, samples: int) -> int:
        """Tokens of the shortest haystack for the first `samples` examples: as much text as needles, and the rest."""
        every = (self._example(kind, row) for row in range(samples))
        return max(one.fixed + sum(map(len, one.needles)) for one in every)

    def batch(self, kind: str, length: int, rows: I64, depth: float | None = None) -> TextBatch:
        """Examples by their numbers.

        Args:
            length: tokens of each.
            depth: percent of the text before the first needle, to the nearest gap between sentences; None: any gap, as
                the other needles always have.

        Raises:
            ValueError: an unknown kind, a length that is too short or above `longest`.
        """
        if kind not in KINDS:
            raise ValueError(f"no kind {kind!r}; known are {', '.join(KINDS)}")
        if length > self.longest:
            raise ValueError(f"length {length} is above {self.longest}, the longest")
        tokens = np.empty((len(rows), length + 1), np.int64)
        labels = np.full((len(rows), length), -100, np.int64)
        own = np.zeros((len(rows), length), bool)
        depths = []
        for at, row in enumerate(rows):
            tokens[at], answers, mine, where = self._whole(kind, length, int(row), depth)
            places = np.concatenate(answers)
            labels[at, places - 1] = tokens[at, places]
            own[at, answers[mine] - 1] = True
            depths.append(where)
        inputs = torch.from_numpy(tokens[:, :-1].copy())
        return TextBatch(inputs, torch.from_numpy(labels), torch.from_numpy(own), tuple(depths))

    def _whole(self, kind: str, length: int, row: int, depth: float | None) -> tuple[I64, list[I64], int, float]:
        """Tokens [length + 1], places of each value, which of them is the first needle's, and its depth."""
        one = self._example(kind, row)
        if length - one.fixed < sum(map(len, one.needles)):
            raise ValueError(f"length {length} is too short for {kind}: its needles and the question take {one.fixed}")
        hay, gaps = self._hay(row, length - one.fixed)
        where = gaps[below(self._key("gaps"), np.asarray([row]), len(one.needles), len(gaps))[0]]
        if depth is not None:
            where[0] = gaps[np.abs(gaps - depth / 100 * len(hay)).argmin()]
        # Needles in one gap: at depth 0 the first needle comes before the others, elsewhere after them.
        standing = sorted(range(len(where)), key=lambda number: (where[number], number if depth == 0 else -number))
        same = KINDS[kind].same_key
        parts = [self._opening(kind)]
        done = 0
        for rank, number in enumerate(standing):
            parts += [hay[done : where[number]], np.asarray(one.needles[rank if same else number])]
            done = where[number]
        parts.append(hay[done:])
        start = sum(map(len, parts))
        mine = standing.index(0) if same else one.order.index(0)
        answers = [start + np.asarray(places) for places in one.answers]
        return np.concatenate([*parts, np.asarray(one.ending)]), answers, mine, 100 * float(where[0]) / len(hay)

    def _hay(self, row: int, tokens: int) -> tuple[I64, I64]:
        """So many tokens of text up to the end of a sentence, and the gaps in it, 0 and the end among them."""
        may = int(np.searchsorted(self.ends, self.longest))
        last = may + int(below(self._key("text"), np.asarray([row]), 1, len(self.ends) - may)[0, 0])
        start = int(self.ends[last]) - tokens
        inside = self.ends[np.searchsorted(self.ends, start, side="right") : last + 1] - start
        return self.tokens[start : start + tokens], np.concatenate([[0], inside])

    def _example(self, kind: str, row: int) -> _Example:
        if (kind, row) not in self._examples:
            self._examples[kind, row] = self._made(kind, row)
        return self._examples[kind, row]

    def _made(self, kind: str, row: int) -> _Example:
        count, asked = counts(kind, self.needles)
        same, number = KINDS[kind].same_key, np.asarray([row])
        keys = [wording.key_of(one) for one in distinct(self._key("keys"), number, count, wording.KEYS)[0]]
        keys = [keys[0]] * count if same else keys
        drawn = distinct(self._key("values"), number, count, wording.VALUES)[0]
        values = [str(wording.LEAST_VALUE + one) for one in drawn]
        needles = [f" {wording.needle(*one)}" for one in zip(keys, values, strict=True)]
        order = tuple(range(asked)) if same else tuple(distinct(self._key("order"), number, asked, asked)[0].tolist())
        question = wording.question(list(dict.fromkeys(keys[one] for one in order)), asked > 1)
        answer = wording.listed([values[one] for one in order])
        spans = [(at := len(question) + 1 + answer.index(values[one]), at + len(values[one])) for one in order]
        ending, places = self.pieces.with_spans(f"{question} {answer}", spans)
        told = tuple(self.pieces.behind_stop(needles))
        fixed = len(self._opening(kind)) + sum(map(len, told)) + len(ending) - 1
        return _Example(told, ending, places, order, fixed)

    def _opening(self, kind: str) -> I64:
        several = counts(kind, self.needles)[1] > 1
        return np.asarray([*self.pieces.begin, *self.pieces.at_beginning(wording.introduction(several))], np.int64)

    def _key(self, what: str) -> int:
        return key("text needle", self.seed, what)
