"""Training text as sequences: the tokens of all documents one after the other, cut every T tokens."""

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmabench.tasks.random_tokens import key


class Packed:
    """Examples of a language model (`dmabench.tasks.task.Examples`): every position has the next token as its label.

    Sequences come in a random order of their own in each epoch, which depends on the seed alone: models with other
    attentions see the same. Documents that share a sequence see each other, with the token between them that ends a
    text.
    """

    def __init__(self, tokens: NDArray, seqlen: int, seed: int) -> None:
        """
        Args:
            tokens: [N], of any unsigned type; may be mapped from a file.

        Raises:
            ValueError: fewer tokens than one sequence and the token after it.
        """
        self.tokens, self.seqlen, self.seed = tokens, seqlen, seed
        self.count = (len(tokens) - 1) // seqlen
        """Sequences in an epoch."""
        if self.count < 1:
            raise ValueError(
                f"{len(tokens)} tokens of training text are fewer than one sequence of {seqlen} and the token after "
                "it: name more text, or a shorter --seqlen"
            )
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels of a step, int64 [size, T]: labels[b, t] follows input_ids[b, :t + 1] in the text."""
        numbers = range(step * size, (step + 1) * size)
        starts = np.array([self._place(number) for number in numbers]) * self.seqlen
        rows = np.stack([self.tokens[start : start + self.seqlen + 1] for start in starts]).astype(np.int64)
        whole = torch.from_numpy(rows)
        return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()

    def _place(self, number: int) -> int:
        """Which sequence of the text the `number`th of the training is."""
        epoch, at = divmod(number, self.count)
        if self._order is None or self._order[0] != epoch:
            draw = np.random.default_rng(key("packed", self.seed, epoch))
            self._order = epoch, draw.permutation(self.count)
        return int(self._order[1][at])


def shares(tokens: NDArray, wanted: list[int]) -> list[NDArray]:
    """The text that each stage of a training reads: parts of their own where there is enough, else all of it."""
    if sum(wanted) >= len(tokens):
        return [tokens for _ in wanted]
    bounds = [len(tokens) * one // sum(wanted) for one in itertools.accumulate(wanted, initial=0)]
    return [tokens[start:end] for start, end in itertools.pairwise(bounds)]
