"""Examples of the three patterns of sparsity: copy at a fixed distance, select what is marked, induce by association.

    copy      . . a b c . . . . . . . .      what stands `distance` before is the answer, for each of `copied` tokens
                        a b c                in a row, which start anywhere
    select    . A . . B . C . | > A B        capitals are marked: at > the first of them, and then, after each, the next
                              | A B C
    induce    . k v . j u . . | j u k v      at each key, in another order than above, the value that stood behind it
                              | u   v

Above are input ids, below labels, which stand where they are to be predicted: nothing is shifted. A dot is a filler: a
random token of a range of its own. Tokens of an example that are asked for are distinct (select: marked ones; induce:
keys, and values), so each label follows from exactly one place. Every example is a pure function of layout, seed,
split and number, and splits share nothing that can be asked for, in its order.
"""

from dataclasses import dataclass
from math import log, perm
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dmabench.tasks import random_tokens
from dmabench.tasks.random_tokens import I64
from dmabench.tasks.scoring import NO_LABEL

SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}
"""Remainders by 4 of the fingerprints of all that an example asks for."""
LEAST_CONTENTS = 1024
"""Contents that a vocabulary must allow, so that each split has some."""
START = 0
"""The token after which marked ones are repeated; also the only one of no range."""


@dataclass(frozen=True)
class Layout:
    """The shape of an example: what the patterns have in common."""

    seqlen: int
    vocab: int

    parts: ClassVar[int]
    """Ranges of tokens: contents of one or two sorts, then fillers, which also get the remainder."""

    @property
    def each(self) -> int:
        """Tokens in every range but the fillers'."""
        return (self.vocab - 1) // self.parts

    @property
    def size(self) -> int:
        """Tokens or pairs that an example asks for."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """Accuracy of guessing, by who knows what sort of token is asked for and which of that sort occurred."""
        raise NotImplementedError

    @property
    def labels(self) -> int:
        """Labels of an example."""
        return self.size

    def refusal(self) -> str | None:
        """Why there are no such examples, or None."""
        raise NotImplementedError

    def make(self, seed: int, split: str, rows: I64 | range) -> tuple[Tensor, Tensor]:
        """input_ids and labels, int64 [B, T] each, of the examples of these numbers; -100 where there is no label.

        Args:
            split: train, validation or test.
            rows: B numbers of examples, of any size and in any order.

        Raises:
            ValueError: a layout that cannot be, with what `refusal` says.
        """
        if reason := self.refusal():
            raise ValueError(reason)
        rows = np.asarray(rows, np.int64)
        fillers = range(1 + self.each * (self.parts - 1), self.vocab)
        drawn = random_tokens.below(self._key(seed, split, "fillers"), rows, self.seqlen, len(fillers))
        ids = fillers.start + drawn
        labels = np.full_like(ids, NO_LABEL)
        self._write(ids, labels, self._contents(seed, split, rows), rows, seed, split)
        return torch.from_numpy(ids), torch.from_numpy(labels)

    def _draw(self, key: int, rows: I64) -> I64:
        """The tokens of one sort, counted from 0: int64 [len(rows), size]."""
        return random_tokens.distinct(key, rows, self.size, self.each)

    def _write(self, ids: I64, labels: I64, contents: list[I64], rows: I64, seed: int, split: str) -> None:
        """Puts contents (one [B, size] for each sort) among the fillers [B, T], and the labels."""
        raise NotImplementedError

    def _key(self, seed: int, split: str, *what: int | str) -> int:
        return random_tokens.key(type(self).__name__, self.size, seed, split, *what)

    def _contents(self, seed: int, split: str, rows: I64) -> list[I64]:
        """Drawn again until their fingerprint is one of the split's."""
        sorts = range(self.parts - 1)
        found = np.empty((len(sorts), len(rows), self.size), np.int64)
        open_rows, turn = np.arange(len(rows)), 0
        while len(open_rows):
            for sort in sorts:
                drawn = self._draw(self._key(seed, split, "contents", sort, turn), rows[open_rows])
                found[sort, open_rows] = 1 + sort * self.each + drawn
            prints = random_tokens.fingerprint(np.concatenate(found[:, open_rows], axis=1)) % np.uint64(4)
            open_rows, turn = open_rows[~np.isin(prints, SPLITS[split])], turn + 1
        return list(found)

    def _small_vocabulary(self, what: str, least: int) -> str | None:
        """Why a vocabulary with so many tokens in each range is too small, or None."""
        while perm(least, self.size) ** (self.parts - 1) < LEAST_CONTENTS:
            least += 1
        if self.each >= least:
            return None
        return (
            f"a vocabulary of {self.vocab} is too small for {what}, which need {least} tokens of each sort; "
            f"the smallest that does has {1 + self.parts * least}: raise --vocab"
        )


@dataclass(frozen=True)
class Copy(Layout):
    """Predict the token `distance` places back, for `copied` tokens in a row."""

    distance: int
    copied: int

    parts = 2

    @property
    def size(self) -> int:
        return self.copied

    @property
    def chance(self) -> float:
        return 1 / self.each

    def refusal(self) -> str | None:
        if self.distance >= self.seqlen:
            return (
                f"nothing in {self.seqlen} tokens lies {self.distance} places back: --distance must be "
                f"below --seqlen, so at most {self.seqlen - 1}"
            )
        if self.distance < 1 or self.copied < 1:
            return "a copy takes a distance and a number of tokens of at least 1: raise --distance or --copied"
        if self.copied + self.distance > self.seqlen:
            return (
                f"{self.copied} tokens and their copies {self.distance} places later do not fit {self.seqlen} tokens: "
                f"at most {self.seqlen - self.distance} can be copied, or raise --seqlen to "
                f"{self.copied + self.distance}"
            )
        least = 2
        while self.copied * log(least) < log(LEAST_CONTENTS):
            least += 1
        if self.each < least:
            return (
                f"a vocabulary of {self.vocab} is too small to copy {self.copied} tokens, half of it being fillers; "
                f"the smallest that does has {1 + 2 * least}: raise --vocab"
            )
        return None

    def _draw(self, key: int, rows: I64) -> I64:
        return random_tokens.below(key, rows, self.copied, self.each)

    def _write(self, ids: I64, labels: I64, contents: list[I64], rows: I64, seed: int, split: str) -> None:
        places = self.seqlen - self.distance - self.copied + 1
        starts = random_tokens.below(self._key(seed, split, "starts"), rows, 1, places)
        sources = starts + np.arange(self.copied)
        np.put_along_axis(ids, sources, contents[0], 1)
        np.put_along_axis(labels, sources + self.distance, contents[0], 1)


@dataclass(frozen=True)
class Select(Layout):
    """Repeat the `marked` tokens in their order."""

    marked: int

    parts = 2

    @property
    def size(self) -> int:
        return self.marked

    @property
    def chance(self) -> float:
        return 1 / self.marked

    @property
    def among(self) -> int:
        """Tokens before the answers, marked and not."""
        return self.seqlen - self.marked

    def refusal(self) -> str | None:
        if self.marked < 1:
            return "select needs at least one marked token: raise --marked"
        if self.marked > self.among:
            return (
                f"{self.marked} marked tokens and their answers do not fit {self.seqlen} tokens: "
                f"the shortest --seqlen that holds them is {2 * self.marked}"
            )
        return self._small_vocabulary(f"{self.marked} distinct marked tokens", self.marked)

    def _write(self, ids: I64, labels: I64, contents: list[I64], rows: I64, seed: int, split: str) -> None:
        places = random_tokens.distinct(self._key(seed, split, "places"), rows, self.marked, self.among)
        np.put_along_axis(ids, np.sort(places, 1), contents[0], 1)
        ids[:, self.among] = START
        ids[:, self.among + 1 :] = contents[0][:, :-1]
        labels[:, self.among :] = contents[0]


@dataclass(frozen=True)
class Induce(Layout):
    """Name the value of each of `pairs` keys."""

    pairs: int

    parts = 3

    @property
    def size(self) -> int:
        return self.pairs

    @property
    def chance(self) -> float:
        return 1 / self.pairs

    @property
    def among(self) -> int:
        """Tokens before the questions."""
        return self.seqlen - 2 * self.pairs

    def refusal(self) -> str | None:
        if self.pairs < 1:
            return "induce needs at least one pair: raise --pairs"
        if 4 * self.pairs > self.seqlen:
            return (
                f"{self.pairs} pairs and the questions for them do not fit {self.seqlen} tokens, at two tokens each: "
                f"the shortest --seqlen that holds them is {4 * self.pairs}"
            )
        return self._small_vocabulary(f"{self.pairs} pairs", self.pairs)

    def _write(self, ids: I64, labels: I64, contents: list[I64], rows: I64, seed: int, split: str) -> None:
        keys, values = contents
        # Pairs take one place each in a sequence that is as much shorter, and then push apart what is behind them.
        places = random_tokens.distinct(self._key(seed, split, "places"), rows, self.pairs, self.among - self.pairs)
        starts = np.sort(places, 1) + np.arange(self.pairs)
        np.put_along_axis(ids, starts, keys, 1)
        np.put_along_axis(ids, starts + 1, values, 1)
        order = random_tokens.distinct(self._key(seed, split, "order"), rows, self.pairs, self.pairs)
        ids[:, self.among :: 2] = np.take_along_axis(keys, order, 1)
        ids[:, self.among + 1 :: 2] = labels[:, self.among :: 2] = np.take_along_axis(values, order, 1)


@dataclass(frozen=True)
class TrainingSet:
    """New examples every step."""

    by_many = True
    """Several threads may ask for batches at once."""
    layout: Layout
    seed: int

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels [size, T] of a step."""
        return self.layout.make(self.seed, "train", range(step * size, (step + 1) * size))
