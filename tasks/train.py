"""The training loop of every task: one process or several (torchrun), resumable to the bit, early stop on validation.

    trained = train(model, examples, Recipe(steps=1000, batch=64, lr=1e-3), tools, validate)

Weights, gradients and AdamW are float32; the forward runs under bf16 autocast on CUDA unless the recipe says fp32.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dmabench.tasks import checkpoint
from dmabench.tasks.batches import Batch, Feed, Part, threads_for
from dmabench.tasks.interrupts import Interrupts
from dmabench.tasks.labelled_loss import LabelledLoss
from dmabench.tasks.processes import Processes, deterministic
from dmabench.tasks.recipe import Recipe, make_optimizer
from dmabench.tasks.replay import Replay
from dmabench.tasks.scoring import Score
from dmabench.tasks.task import Examples, Progress, Tools
from dmabench.tasks.trained import Past, Trained, Validation

__all__ = ["Recipe", "Trained", "train"]

LOOK_S = 0.5
"""Seconds of training between looks: only there the device is waited for, to read losses and report them."""
SAVE_S = 60.0
"""Seconds between checkpoints."""
REPLAYING = ("cuda",)
"""Sorts of devices that have graphs."""
LAST = 20
"""Steps that the final loss is a mean of."""

Validate = Callable[[Any], Score]


def train(
    model: Any,
    examples: Examples,
    recipe: Recipe,
    tools: Tools,
    validate: Validate | None = None,
    replay: bool = False,
) -> Trained:
    """Trains a model in place, or goes on from the checkpoint in `tools.folder`.

    Resumed training gives the weights that an uninterrupted one gives, bit for bit on a CPU, and on a GPU with
    `tools.deterministic`. Process r of n takes rows r, r + n, ... of each batch and the loss is a mean over the labels
    of all, so that the number of processes and of accumulated parts changes rounding alone. SIGINT and SIGTERM save.

    Args:
        model: a DmabenchForCausalLM, or any module with `model` (tokens to hidden states), `model.layers`, `lm_head`
            and `config`.
        examples: a pure function of the step; called in another thread, and on a GPU in several at once if it has a
            true attribute `by_many`.
        replay: one process on a GPU replays its steps from CUDA graphs: for models that are small enough to wait for
            launches. Takes memory for a second step.
        validate: called with the model every `recipe.validate_every` steps and at the end, in every process alike.

    Raises:
        ValueError: a loss that is not finite, a batch without labels or smaller than its parts, or a checkpoint of
            another training, whose differences are named.
        KeyboardInterrupt: after a signal, once the checkpoint is written.
    """
    with deterministic(tools.deterministic), Interrupts() as interrupts:
        return _Training(model, examples, recipe, tools, validate, interrupts, replay).run()


class _Training:
    def __init__(
        self,
        model: Any,
        examples: Examples,
        recipe: Recipe,
        tools: Tools,
        validate: Validate | None,
        interrupts: Interrupts,
        replay: bool,
    ) -> None:
        self.recipe, self.tools, self.examples, self.validate = recipe, tools, examples, validate
        self.interrupts, self.processes = interrupts, Processes(tools.device)
        self.device = self.processes.device
        self.model = model.to(self.device).train()
        self.identity = checkpoint.identity(recipe, model, examples)
        if tools.compile:
            for layer in model.model.layers:
                layer.compile()  # in place and one by one: all layers of a kind share what is compiled
        torch.manual_seed(recipe.seed)
        self.module = self.processes.wrap(LabelledLoss(model, recipe.precision), model.model.layers, recipe.shard)
        self.optimizer = make_optimizer(self.module, recipe)
        self.past = self._resume()
        self.replay, self.lr = None, None
        if replay and self.device.type in REPLAYING and self.processes.count == 1:
            self.lr = torch.zeros((), device=self.device)  # a graph reads it, so it is where the graph was told
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            self.replay = Replay(self._compute, self._forward, self.device)
        self.pending: list[Tensor] = []
        self.look_at = self.past.step + 1
        self.marked = self.saved = time.perf_counter()
        self.unpaced = True

    def run(self) -> Trained:
        processes, past = self.processes, self.past
        pin = self.device.type == "cuda"
        threads = threads_for(self.examples, self.device)
        ended = past.early or past.step == self.recipe.steps
        if not ended:
            self.marked = time.perf_counter()
            shares = processes.rank, processes.count
            pad = self.replay is not None
            with Feed(self.examples, self.recipe, past.step, pin, *shares, pad=pad, threads=threads) as feed:
                for batch in feed:
                    self._step(batch)
                    due = self._validation_due()
                    if due or past.step >= self.look_at or (self.interrupts.caught and processes.count == 1):
                        self._look(due)
                    if past.early:
                        break
        score = Score(**past.validation) if past.validation else None
        last = past.curve[-LAST:]
        tokens, seconds = past.paced_tokens or past.tokens, past.paced_seconds or past.seconds
        return Trained(
            processes.whole(self.model, self.recipe.shard),
            past.step,
            past.tokens,
            sum(last) / len(last),
            past.seconds,
            tokens / seconds,
            score,
            "early" if past.early else "finished",
            past.curve,
            past.validations,
            self.replay.replayed if self.replay else 0,
            self.replay.failed if self.replay else None,
        )

    def _step(self, batch: Batch) -> None:
        lr = self.recipe.lr_at(batch.step)
        if self.replay is not None and self.lr is not None:
            self.lr.fill_(lr)
            loss = self.replay(batch.parts, batch.labels)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss = self._compute([part.to(self.device) for part in batch.parts], batch.labels)
        self.pending.append(loss)
        self.past.step += 1
        self.past.tokens += batch.tokens
        if not self.unpaced:
            self.past.paced_tokens += batch.tokens

    def _compute(self, parts: Sequence[Part], labels: int | Tensor) -> Tensor:
        """This process's share of the step's loss, after the step. All of it can be captured in a CUDA graph.

        Args:
            labels: of all processes.
        """
        processes = self.processes
        self.optimizer.zero_grad()  # a step that could not be captured may have left some
        losses = []
        with processes.without_sync(self.module):
            for part in parts[:-1]:
                losses.append(self._backward(part, labels))
        losses.append(self._backward(parts[-1], labels))
        if self.recipe.clip:
            processes.clip(self.module, self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum()

    def _forward(self, parts: Sequence[Part], labels: int | Tensor) -> Tensor:
        losses = [self.module(part.input_ids, part.index, part.targets) / labels for part in parts]
        return torch.stack(losses).sum()

    def _backward(self, part: Part, labels: int | Tensor) -> Tensor:
        loss = self.module(part.input_ids, part.index, part.targets) / labels
        (loss * self.processes.count).backward()  # gradients become means over the processes
        return loss.detach()

    def _validation_due(self) -> bool:
        every, step = self.recipe.validate_every, self.past.step
        return self.validate is not None and (step == self.recipe.steps or (every > 0 and step % every == 0))

    def _look(self, validation_due: bool) -> None:
        """Waits for the device; then losses, progress, validation, checkpoint, interruption."""
        past, processes = self.past, self.processes
        asked = torch.tensor([float(self.interrupts.caught)], device=self.device)
        *losses, signals = processes.sum(torch.cat([torch.stack(self.pending), asked])).tolist()
        now = time.perf_counter()
        seconds = now - self.marked
        past.curve += losses
        past.seconds += seconds
        self._require_finite(losses)
        if not self.unpaced:
            past.paced_seconds += seconds
        self.unpaced = False
        self.pending = []
        if validation_due:
            self._validate()
        self._report("train")
        ended = past.early or past.step == self.recipe.steps
        wanted = max(1, round(len(losses) * LOOK_S / max(seconds, 1e-6)))
        save = ended or signals > 0 or now - self.saved > SAVE_S
        save, wanted = processes.agree((save, wanted))
        self.look_at = min(past.step + wanted, self.recipe.steps)
        if save:
            self._save()
        if signals and not ended:
            raise KeyboardInterrupt
        self.marked = time.perf_counter()

    def _require_finite(self, losses: list[float]) -> None:
        for number, loss in enumerate(losses, self.past.step - len(losses) + 1):
            if not abs(loss) < float("inf"):
                where = f"the loss of step {number} of {self.recipe.steps} is {loss}"
                raise ValueError(f"{where}: training diverged; a smaller lr (now {self.recipe.lr:g}) is the first cure")

    def _validate(self) -> None:
        assert self.validate is not None
        past = self.past
        self._report("validate")
        self.model.eval()
        score = self.processes.agree(self.validate(self.processes.whole(self.model, self.recipe.shard)))
        self.model.train()
        past.validation = asdict(score)
        past.validations.append(Validation(past.step, score.accuracy, past.tokens, score.loss))
        past.early = self.recipe.stop_at is not None and score.accuracy >= self.recipe.stop_at

    def _report(self, stage: str) -> None:
        if not self.processes.first:
            return
        past = self.past
        tokens, seconds = past.paced_tokens or past.tokens, past.paced_seconds or past.seconds
        accuracy = past.validations[-1].accuracy if past.validations else None
        self.tools.progress(Progress(stage, past.step, self.recipe.steps, past.curve[-1], accuracy, tokens / seconds))

    def _save(self) -> None:
        rest = {
            "past": self.past.as_dict(),
            "recipe": asdict(self.recipe),
            "identity": self.identity,
            "random": self.processes.gather(checkpoint.random_state(self.device)),
        }
        checkpoint.save(self.tools.folder, self.module, self.optimizer, rest, writes=self.processes.first)
        self.processes.wait()
        self.saved = time.perf_counter()

    def _resume(self) -> Past:
        held = checkpoint.read(self.tools.folder)
        if held is None:
            return Past()
        checkpoint.check(held, self.recipe, self.identity, self.tools.folder)
        checkpoint.restore(held, self.module, self.optimizer)
        states = held["rest"]["random"]
        checkpoint.set_random_state(states[self.processes.rank % len(states)], self.device)
        return Past.of(held["rest"]["past"])
