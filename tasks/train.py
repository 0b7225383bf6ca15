"""The training loop of every task."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from dmabench.tasks.scoring import Score, labelled
from dmabench.tasks.task import Examples, Progress, Tools


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    steps: int
    """At most."""
    batch: int
    """Examples a step, over all processes and accumulation steps."""
    lr: float
    """At its peak."""
    warmup: float = 0.1
    """Share of the steps over which lr rises from 0; then it falls to 0 as a cosine."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    accumulate: int = 1
    """Parts that a step's batch is computed in."""
    precision: str = "bf16"
    """bf16: float32 weights under bf16 autocast. fp32: float32 throughout."""
    validate_every: int = 0
    """Steps; 0: only at the end."""
    stop_at: float | None = None
    """Validation accuracy that ends training."""
    seed: int = 0


@dataclass
class Trained:
    """What came of it."""

    model: Any
    steps: int
    tokens: int
    loss: float
    """Mean of the last steps, at most 20."""
    seconds: float
    """Of training, validation left out; over all runs that it took."""
    tokens_per_s: float
    validation: Score | None
    """The last."""
    stopped: Literal["finished", "early"]
    curve: list[float] = field(default_factory=list)
    """Loss of each step."""
    validations: list[tuple[int, float]] = field(default_factory=list)
    """Step and accuracy."""


def train(
    model: Any, examples: Examples, recipe: Recipe, tools: Tools, validate: Callable[[Any], Score] | None = None
) -> Trained:
    """Trains in place."""
    device = torch.device(tools.device)
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
    curve: list[float] = []
    validations: list[tuple[int, float]] = []
    tokens, validation, stopped = 0, None, "finished"
    started, paused = time.perf_counter(), 0.0
    for step in range(recipe.steps):
        rise = max(1, round(recipe.warmup * recipe.steps))
        share = (step + 1 - rise) / max(1, recipe.steps - rise)
        factor = (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * factor
        input_ids, labels = examples.batch(step, recipe.batch)
        index, targets = labelled(labels)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            hidden = model.model(input_ids=input_ids.to(device)).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[index.to(device)])
        loss = nn.functional.cross_entropy(logits.float(), targets.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
        tokens += input_ids.numel()
        if not math.isfinite(curve[-1]):
            raise ValueError(f"the loss of step {step + 1} is {curve[-1]}: try a smaller --lr")
        due = recipe.validate_every and (step + 1) % recipe.validate_every == 0
        if validate is not None and (due or step + 1 == recipe.steps):
            before = time.perf_counter()
            validation = validate(model)
            validations.append((step + 1, validation.accuracy))
            paused += time.perf_counter() - before
            if recipe.stop_at is not None and validation.accuracy >= recipe.stop_at:
                stopped = "early"
        seconds = time.perf_counter() - started - paused
        accuracy = validation.accuracy if validation else None
        tools.progress(Progress("train", step + 1, recipe.steps, curve[-1], accuracy, tokens / seconds))
        if stopped == "early":
            break
    last = curve[-20:]
    return Trained(
        model,
        len(curve),
        tokens,
        sum(last) / len(last),
        seconds,
        tokens / seconds,
        validation,
        stopped,
        curve,
        validations,
    )
