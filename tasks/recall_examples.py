"""Examples of multi-query associative recall: pairs of tokens, then every key once more, to be answered by its value.

    k1 v1 k2 v2 ... kP vP | . . k2 . . . k1 . ...      one query a key, on even places; . is a filler
                          |     v2       v1            the label stands at its query: nothing is shifted

After the public generator (Zoology, arXiv 2312.04927): keys and values of an example are distinct, queries lie
`2 * gap` behind the pairs, and gaps follow a power law. Unlike there, fillers come from a range of their own, so that
none is a key by chance; seeds reach every draw; and the splits are apart.
"""

import threading
from dataclasses import dataclass
from math import perm

import numpy as np
import torch
from torch import Tensor

from dmabench.tasks import random_tokens
from dmabench.tasks.random_tokens import I64

NO_LABEL = -100
SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}
"""Remainders by 4 of the fingerprints of a split's contexts (all keys and values, in order)."""
LEAST_CONTEXTS = 1024
"""Contexts that a vocabulary must allow, so that each split has some."""


@dataclass(frozen=True)
class Recall:
    """One batch."""

    input_ids: Tensor
    """int64 [B, T]."""
    labels: Tensor
    """int64 [B, T]: at each query the value of its key, -100 elsewhere."""
    queries: Tensor
    """int64 [B, P]: where pair p, whose key is at 2 p and whose value at 2 p + 1, is asked for."""


@dataclass(frozen=True)
class Layout:
    """The shape of an example."""

    pairs: int
    seqlen: int
    vocab: int = 8192
    power: float = 0.01
    """Exponent a of the gaps: gap g = 0, 1, ... has weight (g + 1)^(a - 1); 1 is uniform."""
    fillers: bool = True
    """Random tokens where nothing else stands; else the blank, token 0."""

    @property
    def each(self) -> int:
        """Tokens in each of the three ranges: keys 1 ..., then values, then fillers, which also get the remainder."""
        return (self.vocab - 1) // 3

    @property
    def ranges(self) -> dict[str, range]:
        """Tokens of keys, values and fillers; 0 is the blank."""
        n = self.each
        return {
            "keys": range(1, 1 + n),
            "values": range(1 + n, 1 + 2 * n),
            "fillers": range(1 + 2 * n, self.vocab),
        }

    def refusal(self) -> str | None:
        """Why there are no such examples, or None."""
        P, T = self.pairs, self.seqlen
        if P < 1:
            return f"recall needs at least one pair, got {P}"
        if T % 2:
            return f"{T} tokens: pairs and gaps take two tokens each, so the length must be even: {T + 1}, say"
        if 4 * P > T:
            return (
                f"{P} pairs do not fit {T} tokens: they take {2 * P}, and their queries as many again; "
                f"the shortest sequence that holds them has {4 * P}"
            )
        least = P
        while perm(least, P) ** 2 < LEAST_CONTEXTS:
            least += 1
        if self.each < least:
            what = f"{P} pair{'s' * (P > 1)}"
            return (
                f"a vocabulary of {self.vocab} is too small for {what}: keys, values and fillers take a third each, "
                f"and {what} must have {least} keys and as many values; the smallest that does has {3 * least + 1}"
            )
        return None

    def make(self, seed: int, split: str, rows: I64 | range) -> Recall:
        """The examples of these numbers, each a function of (layout, seed, split, number) alone.

        No context (keys and values, in order) is in two splits.

        Args:
            split: train, validation or test.
            rows: numbers of examples, of any size and in any order.

        Raises:
            ValueError: a layout that cannot be, with what `refusal` says.
        """
        if reason := self.refusal():
            raise ValueError(reason)
        rows = np.asarray(rows, np.int64)
        P, T, B = self.pairs, self.seqlen, len(rows)
        keys, values = self._contexts(seed, split, rows)
        gaps = (np.arange(1.0, (T - 2 * P) // 2 + 1)) ** (self.power - 1)
        queries = 2 * P + 2 * random_tokens.gumbel_top_k(self._key(seed, split, "gaps"), rows, gaps, P)
        ids = np.zeros((B, T), np.int64)
        if self.fillers:
            tokens = self.ranges["fillers"]
            drawn = random_tokens.below(self._key(seed, split, "fillers"), rows, T - 2 * P, len(tokens))
            ids[:, 2 * P :] = tokens.start + drawn
        ids[:, 0 : 2 * P : 2], ids[:, 1 : 2 * P : 2] = keys, values
        labels = np.full((B, T), NO_LABEL, np.int64)
        np.put_along_axis(ids, queries, keys, 1)
        np.put_along_axis(labels, queries, values, 1)
        return Recall(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(queries))

    def _key(self, seed: int, split: str, *what: int | str) -> int:
        return random_tokens.key("mqar", seed, split, self.pairs, *what)

    def _contexts(self, seed: int, split: str, rows: I64) -> tuple[I64, I64]:
        """Keys and values [B, P], whose fingerprint is one of the split's.

        Where it is not, the values go one key further, which is as random and costs nothing; after all P such turns
        both are drawn again.
        """
        context = np.empty((2, len(rows), self.pairs), np.int64)
        open_rows, turn = np.arange(len(rows)), 0
        while len(open_rows):
            if turn % self.pairs:
                context[1, open_rows] = np.roll(context[1, open_rows], 1, axis=1)
            else:
                for part, name in enumerate(("keys", "values")):
                    stream = self._key(seed, split, name, turn // self.pairs)
                    drawn = random_tokens.distinct(stream, rows[open_rows], self.pairs, self.each)
                    context[part, open_rows] = self.ranges[name].start + drawn
            prints = random_tokens.fingerprint(np.concatenate(context[:, open_rows], axis=1)) % np.uint64(4)
            open_rows, turn = open_rows[~np.isin(prints, SPLITS[split])], turn + 1
        return context[0], context[1]


@dataclass(frozen=True)
class Stage:
    """From which step on training takes examples of this layout."""

    first_step: int
    layout: Layout


class TrainingSet:
    """Training examples by step: fresh ones, or a set of `examples` that comes again each epoch in another order."""

    by_many = True
    """Several threads may ask for batches at once."""

    def __init__(self, stages: list[Stage], seed: int, examples: int = 0) -> None:
        self.stages, self.seed, self.examples = stages, seed, examples
        self._orders: dict[int, I64] = {}
        self._lock = threading.Lock()

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels [n, T] of a step, T that of the step's stage.

        In the last stage n is size; in those before it n is larger, so that a step has about as many tokens.
        """
        stage, rows = self.rows(step, size)
        recall = stage.layout.make(self.seed, "train", rows)
        return recall.input_ids, recall.labels

    def rows(self, step: int, size: int) -> tuple[Stage, I64]:
        """The stage of a step and the numbers of its examples, which each stage counts from 0."""
        stage = [stage for stage in self.stages if stage.first_step <= step][-1]
        count = size * self.stages[-1].layout.seqlen // stage.layout.seqlen
        number = (step - stage.first_step) * count + np.arange(count)
        if not self.examples:
            return stage, number
        epochs, places = number // self.examples, number % self.examples
        rows = np.empty_like(number)
        for epoch in np.unique(epochs).tolist():
            rows[epochs == epoch] = self._order(epoch)[places[epochs == epoch]]
        return stage, rows

    def _order(self, epoch: int) -> I64:
        with self._lock:
            if epoch not in self._orders:
                if len(self._orders) > 1:
                    del self._orders[min(self._orders)]
                stream = random_tokens.key("mqar", self.seed, "epoch", epoch)
                self._orders[epoch] = random_tokens.permutation(stream, self.examples)
            return self._orders[epoch]
