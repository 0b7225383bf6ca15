"""How well a model predicts text that it was not trained on: perplexity, bits per byte, by position too."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dmabench.tasks.recipe import autocast
from dmabench.tasks.scoring import Score

MOST_LOGITS = 1 << 27
"""Logits of one forward: half a GiB in float32."""
MOST_SEQUENCES = 64
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Positions `start` up to `end` of the sequences that were scored."""

    start: int
    end: int
    tokens: int
    bytes: int
    nll: float
    """Sum of negative log-probabilities, natural logarithm."""

    @property
    def perplexity(self) -> float:
        """exp of the mean over tokens."""
        return math.exp(min(self.nll / self.tokens, 700.0)) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits that the text takes, over its bytes in UTF-8: comparable between tokenizers."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class TextLoss:
    """Sums over documents and over positions."""

    document_nll: F64
    """[D]."""
    document_tokens: I64
    document_bytes: I64
    position_nll: F64
    """[T]."""
    position_tokens: I64
    position_bytes: I64
    correct: int
    """Tokens that were the most likely."""

    @property
    def whole(self) -> Part:
        """All positions."""
        return self.part(0, len(self.position_nll))

    @property
    def score(self) -> Score:
        """As other tasks count."""
        return Score(self.correct, self.whole.tokens, 0, 0, -self.whole.nll)

    def part(self, start: int, end: int) -> Part:
        """Positions `start` up to `end`."""
        sums = (x[start:end].sum() for x in (self.position_tokens, self.position_bytes, self.position_nll))
        tokens, size, nll = sums
        return Part(start, end, int(tokens), int(size), float(nll))

    def by_position(self) -> list[Part]:
        """Parts that double: 0-15, 16-31, 32-63, ... to the last position that has tokens."""
        last = int(np.flatnonzero(self.position_tokens)[-1]) + 1
        bounds = [0]
        while bounds[-1] < last:
            bounds.append(min(last, max(16, 2 * bounds[-1])))
        return [self.part(start, end) for start, end in itertools.pairwise(bounds)]


@torch.no_grad()
def text_loss(
    model: Any,
    documents: Iterable[tuple[I64, I64]],
    end: int,
    seqlen: int,
    most: int | None = None,
    told: Callable[[int], None] = lambda tokens: None,
) -> TextLoss:
    """Scores every token of every document once, each document by itself in sequences of `seqlen` that do not overlap.

    A document begins after `end`; its later sequences begin with the token before them. So tokens at the beginning of
    a sequence have little context, which `by_position` shows.

    Args:
        model: any transformers model for causal language modelling, on its device.
        documents: tokens, ended by `end`, and the bytes that each adds; int64.
        most: tokens at most, the same number from the beginning of each document.
        told: hears of tokens that were scored.

    Raises:
        ValueError: no tokens to score.
    """
    documents = list(documents)
    if most is not None:
        documents = _beginnings(documents, most)
    if not sum(len(tokens) for tokens, _ in documents):
        raise ValueError("there is no held-out text to score: name more text, or a file of its own with --heldout")
    device = next(model.parameters()).device
    count = len(documents)
    document_nll, position_nll = np.zeros(count), np.zeros(seqlen)
    position_tokens, position_bytes = np.zeros(seqlen, np.int64), np.zeros(seqlen, np.int64)
    pieces = [
        (number, start) for number, (tokens, _) in enumerate(documents) for start in range(0, len(tokens), seqlen)
    ]
    pieces.sort(key=lambda piece: -min(seqlen, len(documents[piece[0]][0]) - piece[1]))  # alike lengths together
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = min(MOST_SEQUENCES, max(1, MOST_LOGITS // (vocabulary * seqlen)))
    correct = 0
    was_training = model.training
    model.eval()
    try:
        for at in range(0, len(pieces), rows):
            batch = pieces[at : at + rows]
            nll, right, lengths = _forward(model, documents, batch, end, seqlen, device)
            correct += right
            for row, (number, start), length in zip(nll, batch, lengths, strict=True):
                position_nll[:length] += row[:length]
                position_tokens[:length] += 1
                position_bytes[:length] += documents[number][1][start : start + length]
                document_nll[number] += row[:length].sum()
            told(sum(lengths))
    finally:
        model.train(was_training)
    counts = np.asarray([len(tokens) for tokens, _ in documents], np.int64)
    sizes = np.asarray([int(added.sum()) for _, added in documents], np.int64)
    return TextLoss(document_nll, counts, sizes, position_nll, position_tokens, position_bytes, correct)


def _forward(
    model: Any, documents: list[tuple[I64, I64]], batch: list[tuple[int, int]], end: int, seqlen: int, device: Any
) -> tuple[F64, int, list[int]]:
    """Losses [rows, longest], how many tokens were the most likely, and the length of each row."""
    lengths = [min(seqlen, len(documents[number][0]) - start) for number, start in batch]
    ids = np.full((len(batch), max(lengths)), end, np.int64)
    labels = np.full(ids.shape, -100, np.int64)
    for row, ((number, start), length) in enumerate(zip(batch, lengths, strict=True)):
        tokens = documents[number][0]
        labels[row, :length] = tokens[start : start + length]
        ids[row, 1:length] = tokens[start : start + length - 1]
        ids[row, 0] = tokens[start - 1] if start else end
    input_ids, targets = torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)
    with autocast(device, "bf16"):
        logits = model(input_ids=input_ids).logits
    flat = logits.flatten(0, 1).float()
    nll = F.cross_entropy(flat, targets.flatten(), reduction="none").view(ids.shape)
    right = int((flat.argmax(-1) == targets.flatten()).sum())
    return nll.double().cpu().numpy(), right, lengths


def _beginnings(documents: list[tuple[I64, I64]], most: int) -> list[tuple[I64, I64]]:
    """Documents cut so that all together have at most `most` tokens: the longest are cut first, to equal lengths; of
    more documents than `most`, the first."""
    documents = [one for one in documents if len(one[0])][:most]
    left, limit = most, 0
    for number, length in enumerate(sorted(len(tokens) for tokens, _ in documents)):
        limit = left // (len(documents) - number)
        if length > limit:
            break
        left -= length
        limit = length
    return [(tokens[:limit], sizes[:limit]) for tokens, sizes in documents]
