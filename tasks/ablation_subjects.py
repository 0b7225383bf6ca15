"""What ablations are trained on: text, or recall. Each is one of the other tasks, with a model that has variants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmabench.tasks import language, language_presets, mqar, mqar_presets
from dmabench.tasks.ablation_variants import VARIANTS
from dmabench.tasks.language_model import build
from dmabench.tasks.task import Axis, Row, Settings, Tools
from dmabench.tasks.task_model import build_model
from dmabench.tasks.train import Trained

SEQUENCES = 4
"""Sequences that statistics of masks are made from, at the longest length."""


@dataclass(frozen=True)
class Learned:
    """A trained model with what is asked of it."""

    model: Any
    last: Trained
    score: Callable[[Any], Row]
    """Any model of these weights -> accuracy, test_loss and what else its task reports."""
    untrained: Callable[[], Any]
    """The model before its first step."""
    tokens: Callable[[int], Tensor]
    """A length -> input_ids [sequences, that length at most] of test data."""


class Language:
    """Text, as `dmabench train` learns it."""

    task = language.TASK
    axes = ("size", "data", "heldout", "tokenizer", "vocab", "tokens", "step_tokens", "heldout_tokens")
    common = language_presets.COMMON

    def learn(self, settings: Settings, tools: Tools) -> Learned:
        """Trains a model."""
        learned = language.learn(settings, tools)

        def score(model: Any) -> Row:
            tested = learned.test(model, settings, tools)
            kept = ("perplexity", "bits_per_byte", "test_loss", "accuracy", "test_tokens", "chance", "text_key")
            row = language.row_of(learned, tested)
            return {name: row[name] for name in (*kept, "document_losses", "note")}

        def tokens(length: int) -> Tensor:
            text = torch.from_numpy(learned.tokens.test.tokens[: SEQUENCES * length].astype("int64"))
            count = max(1, len(text) // length)
            return text[: count * length].view(count, -1)

        model = learned.model
        return Learned(model, learned.trainings[-1], score, lambda: build(settings, learned.words), tokens)


class Recall:
    """Multi-query associative recall, as `dmabench mqar` learns it."""

    task = mqar.TASK
    axes = ("pairs", "d_model", "steps", "step_tokens", "test_examples", "vocab")
    common = mqar_presets.COMMON | {"heads": 2}
    """Two heads, since masks of heads are compared."""

    def learn(self, settings: Settings, tools: Tools) -> Learned:
        """Trains a model."""
        layout, test = mqar.layout_of(settings), mqar.test_of(settings)
        trained = mqar.learn(settings, tools)

        def score(model: Any) -> Row:
            tested = mqar.score(model, settings, test)
            numbers = {"accuracy": tested.accuracy, "correct": tested.correct, "total": tested.total}
            return numbers | {"test_loss": tested.loss, "chance": 1 / layout.pairs}

        def tokens(length: int) -> Tensor:
            longer = mqar.layout_of({**settings, "seqlen": length})
            return longer.make(settings["seed"], "test", range(SEQUENCES)).input_ids

        def untrained() -> Any:
            return build_model(settings, layout.vocab, layout.seqlen)

        return Learned(trained.model, trained, score, untrained, tokens)


SUBJECTS: dict[str, Language | Recall] = {"language": Language(), "mqar": Recall()}


def inner(settings: Settings) -> Settings:
    """The settings of the task that an ablation trains on, with the fields of the config that its variant changes."""
    subject = SUBJECTS[settings["on"]]
    attention, fields = VARIANTS[settings["variant"]]
    found: Settings = {axis.name: _typed(axis, subject.common.get(axis.name)) for axis in subject.task.axes}
    shared = ("seqlen", "window", "lr", "seed")
    found |= {name: settings[name] for name in (*subject.axes, *shared) if settings[name] is not None}
    # Completed as dma, so that every variant has the window that others are tested with.
    return {**subject.task.complete({**found, "attention": "dma"}), "attention": attention, **fields}


def _typed(axis: Axis, value: Any) -> Any:
    """A value of a preset, which stands there as on a command line."""
    if value is None or axis.type is bool:
        return None if value is None else value == "yes"
    return axis.type(value)
