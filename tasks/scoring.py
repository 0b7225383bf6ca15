"""Scores at labelled positions, without generation: what a model predicts there, how sure it is, how many it gets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NO_LABEL = -100


@dataclass(frozen=True)
class Score:
    """Counts of predictions, additive over batches; means are properties."""

    correct: int
    total: int
    exact: int
    """Examples all of whose labels are right."""
    examples: int
    """Examples with at least one label."""
    logprob: float
    """Sum of the targets' log-probabilities, natural logarithm."""

    @property
    def accuracy(self) -> float:
        """Share of labels predicted; 0 where there are none."""
        return self.correct / self.total if self.total else 0.0

    @property
    def exact_match(self) -> float:
        """Share of examples that are wholly right; 0 where there are none."""
        return self.exact / self.examples if self.examples else 0.0

    @property
    def loss(self) -> float:
        """Mean negative log-probability of a target; 0 where there are none."""
        return -self.logprob / self.total if self.total else 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.correct + other.correct,
            self.total + other.total,
            self.exact + other.exact,
            self.examples + other.examples,
            self.logprob + other.logprob,
        )


NOTHING = Score(0, 0, 0, 0, 0.0)


@dataclass(frozen=True)
class Predictions:
    """One entry for each of N labels, in the order of examples and positions; all [N] on the CPU."""

    example: Tensor
    """int64: row of input_ids."""
    position: Tensor
    """int64."""
    target: Tensor
    """int64: the label."""
    predicted: Tensor
    """int64: the most likely token of the vocabulary."""
    logprob: Tensor
    """float32: log-probability of the target, natural logarithm."""
    rank: Tensor
    """int64: how many candidates are more likely than the target; 0 is best."""

    @property
    def correct(self) -> Tensor:
        """bool [N]."""
        return self.predicted == self.target

    def exact(self) -> tuple[Tensor, Tensor]:
        """The examples that have labels, int64 [E], and whether each is wholly right, bool [E]."""
        examples, place = self.example.unique(return_inverse=True)
        wrong = torch.zeros(len(examples), dtype=torch.long).index_add_(0, place, (~self.correct).long())
        return examples, wrong == 0

    def score(self, where: Tensor | None = None) -> Score:
        """Of all, or of those that the bool mask [N] chooses."""
        chosen = self if where is None else self.subset(where)
        examples, exact = chosen.exact()
        return Score(
            int(chosen.correct.sum()),
            len(chosen.target),
            int(exact.sum()),
            len(examples),
            float(chosen.logprob.double().sum()),
        )

    def subset(self, where: Tensor) -> "Predictions":
        """Those that the bool mask [N] chooses."""
        return Predictions(**{name: value[where] for name, value in vars(self).items()})


def labelled(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where labels [B, T] are, as indices into the flattened batch, and which they are: int64 [N] each.

    On the CPU, so that no device has to be waited for.
    """
    flat = labels.flatten()
    index = (flat != NO_LABEL).nonzero().flatten()
    return index, flat[index]


def at_labels(model: Any, input_ids: Tensor, index: Tensor) -> Tensor:
    """Logits [N, vocabulary] at `index` [N] into the flattened input_ids [B, T]; no others are computed.

    Args:
        model: a DmabenchForCausalLM, or any transformers model with `model` (to hidden states) and `lm_head`.
    """
    hidden = model.model(input_ids=input_ids).last_hidden_state
    logits: Tensor = model.lm_head(hidden.flatten(0, 1)[index])
    return logits


@torch.no_grad()
def predict(
    model: Any,
    input_ids: Tensor,
    labels: Tensor,
    batch: int = 32,
    candidates: Tensor | None = None,
    logits: Callable[[Any, Tensor, Tensor], Tensor] = at_labels,
) -> Predictions:
    """What a model says at the labelled positions. Nothing is shifted: labels[b, t] follows input_ids[b, :t + 1].

    The device is waited for once, at the end. On CUDA the model runs under bf16 autocast, as it trains by default;
    elsewhere in the dtype of its weights.

    Args:
        model: one that `logits` takes.
        input_ids, labels: int64 [B, T] on the CPU; -100 where there is no label.
        batch: sequences a forward.
        candidates: tokens that `rank` is among, int64 [K], or [B, K] where each example has its own; default: all.
        logits: as `at_labels`, which is for our own models.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    index, _ = labelled(labels)
    try:
        for start in range(0, len(input_ids), batch):
            rows = slice(start, start + batch)
            own = candidates[rows] if candidates is not None and candidates.dim() == 2 else candidates
            parts.append(_forward(model, input_ids[rows], labels[rows], own, device, logits))
    finally:
        model.train(was_training)
    predicted, logprob, rank = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    T = labels.shape[1]
    return Predictions(index // T, index % T, labels.flatten()[index], predicted, logprob, rank)


def _forward(
    model: Any,
    input_ids: Tensor,
    labels: Tensor,
    candidates: Tensor | None,
    device: torch.device,
    logits_of: Callable[[Any, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    index, targets = labelled(labels)
    rows = index // labels.shape[1]
    on_device = [x.to(device, non_blocking=True) for x in (input_ids, index, targets, rows)]
    input_ids, index, targets, rows = on_device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = logits_of(model, input_ids, index)
    logits = logits.float()
    own = logits.gather(1, targets[:, None])
    rivals = logits
    if candidates is not None:
        candidates = candidates.to(device, non_blocking=True)
        rivals = logits.gather(1, candidates[rows] if candidates.dim() == 2 else candidates.expand(len(logits), -1))
    logprob = own[:, 0] - logits.logsumexp(-1)
    return logits.argmax(-1), logprob, (rivals > own).sum(-1)


def total(scores: Iterable[Score]) -> Score:
    """The score of all batches together."""
    return sum(scores, NOTHING)
