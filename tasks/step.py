"""Training steps alone: tokens a second, memory, and how much of a step is attention. Nothing is learned.

    dmabench step --size 1.7B --attention mha,dma --seqlen 2k,8k,32k

Weights and tokens are random. A step is that of tasks/train.py: forward under bf16 autocast on a GPU, loss, backward,
clipping, AdamW.
"""

import gc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

from dmabench.tasks.attention_time import Stamp, Stopwatch, attention_time
from dmabench.tasks.batches import Batch, split
from dmabench.tasks.config import ModelConfig
from dmabench.tasks.kinds import known_kinds
from dmabench.tasks.labelled_loss import LabelledLoss
from dmabench.tasks.language_stages import SMALLEST_WINDOW
from dmabench.tasks.presets import FIELDS, model_config
from dmabench.tasks.presets import PRESETS as SIZES
from dmabench.tasks.recipe import Recipe, make_optimizer
from dmabench.tasks.step_presets import DEFAULTS, PRESETS
from dmabench.tasks.task import Axis, Cost, Progress, Row, Settings, Task, Tools
from dmabench.tasks.task_model import WINDOWED, config_cost, model_facts

WARM, MARKED = 2, 2
"""Steps before those that are timed, and after them, with attention stamped."""
RECIPE = Recipe(steps=1000, batch=1, lr=1e-4)
AUTO, YES, NO = "auto", "yes", "no"

AXES: tuple[Axis, ...] = (
    Axis("size", str, "Size of the model (dmabench list models).", choices=tuple(SIZES)),
    Axis("attention", str, "Which attention every layer has.", choices=known_kinds()),
    Axis("seqlen", int, "Tokens of a sequence.", least=2),
    Axis(
        "window",
        int,
        "Keys a query attends to; default: the size's, a quarter of --seqlen at most.",
        least=1,
        only=WINDOWED,
    ),
    Axis(
        "nsa",
        str,
        "Sizes of nsa: equal (as many keys as the window) or paper.",
        choices=("equal", "paper"),
        only=("nsa",),
    ),
    Axis("batch", int, "Sequences a step; default: as many as --step-tokens has.", least=1),
    Axis("step_tokens", int, "Tokens a step, from which --batch follows where it is not given.", least=1),
    Axis(
        "at_once", int, "Sequences that go through the model at once; default: as many as memory has room for.", least=1
    ),
    Axis(
        "recompute",
        str,
        "Activations again in the backward instead of kept. auto: where memory ends otherwise.",
        choices=(AUTO, YES, NO),
    ),
    Axis("steps", int, "Steps that are timed.", least=1),
    Axis("seed", int, "Seed of weights and tokens.", least=0),
)


def complete(settings: Settings) -> Settings:
    """The window from the size, the batch from the tokens of a step."""
    found = dict(settings)
    if found["window"] is None and found["attention"] in WINDOWED:
        own = int(SIZES[found["size"]]["size"][FIELDS.index("window")])
        found["window"] = min(own, max(SMALLEST_WINDOW, found["seqlen"] // 4))
    if found["batch"] is None:
        found["batch"] = max(1, found["step_tokens"] // found["seqlen"])
    found["step_tokens"] = None  # done with: cells of equal batches are equal
    return found


def config_of(settings: Settings) -> ModelConfig:
    """The model; ValueError for settings that do not fit."""
    fields = {name: settings[name] for name in ("window", "nsa") if settings[name] is not None}
    config = model_config(settings["size"], settings["attention"], **fields)
    config.max_position_embeddings = max(config.max_position_embeddings, settings["seqlen"])
    config.check()
    return config


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, or None."""
    if (settings["at_once"] or 1) > settings["batch"]:
        return f"--at-once {settings['at_once']} is more than the {settings['batch']} sequences of a step"
    try:
        config_of(settings)
    except ValueError as error:
        return str(error)
    return None


def cost(settings: Settings) -> Cost:
    """What all steps take; memory as if nothing was recomputed."""
    tokens = (WARM + settings["steps"] + MARKED) * settings["batch"] * settings["seqlen"]
    return config_cost(config_of(settings), tokens, settings["seqlen"], settings["at_once"] or settings["batch"])


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Times the steps of one model; one row. Where memory ends, half as many sequences go through the model at once;
    where one is too many, activations are recomputed.

    Raises:
        ValueError: a loss that is not finite.
        torch.OutOfMemoryError: not even one sequence fits.
    """
    for at_once, recompute in _attempts(settings):
        try:
            return [_measure(settings, at_once, recompute, tools)]
        except torch.OutOfMemoryError as error:
            last = error.with_traceback(None)  # which holds on to what has to be freed
        gc.collect()
        torch.cuda.empty_cache()
    raise last


def _attempts(settings: Settings) -> Iterator[tuple[int, bool]]:
    """Sequences at once and whether to recompute, from the fastest on."""
    for recompute in {AUTO: (False, True), YES: (True,), NO: (False,)}[settings["recompute"]]:
        at_once = settings["at_once"] or settings["batch"]
        yield at_once, recompute
        while at_once > 1 and settings["at_once"] is None:
            at_once = -(-at_once // 2)
            yield at_once, recompute


@dataclass
class _Steps:
    model: Any
    module: LabelledLoss
    optimizer: torch.optim.Optimizer
    batch: Batch
    device: torch.device

    def once(self) -> torch.Tensor:
        """One step, as tasks/train.py takes it; its loss."""
        losses = []
        for part in self.batch.parts:
            part = part.to(self.device)
            loss = self.module(part.input_ids, part.index, part.targets) / self.batch.labels
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), RECIPE.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum()


def _measure(settings: Settings, at_once: int, recompute: bool, tools: Tools) -> Row:
    steps = _prepare(settings, at_once, recompute, tools)
    watch = Stopwatch(tools.device)
    total, on_gpu = WARM + settings["steps"] + MARKED, steps.device.type == "cuda"
    done = 0

    def take(count: int) -> tuple[list[Stamp], torch.Tensor]:
        nonlocal done
        stamps = [watch.now()]
        for _ in range(count):
            loss = steps.once()
            stamps.append(watch.now())
            done += 1
            tools.progress(Progress("time", done, total))
        watch.wait()
        return stamps, loss

    take(WARM)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(steps.device)
    stamps, loss = take(settings["steps"])
    peak = torch.cuda.max_memory_allocated(steps.device) / 2**20 if on_gpu else None
    if not torch.isfinite(loss):
        raise ValueError(f"the loss of step {done} is {loss.item()}: a step that computes nothing is not timed")
    taken = [watch.ms(start, end) for start, end in itertools.pairwise(stamps)]
    step_ms = median(taken)
    tokens = settings["batch"] * settings["seqlen"]
    share = None
    if not tools.compile:  # stamps would cut what is compiled
        with attention_time(steps.model, watch) as found:
            marked, _ = take(MARKED)
        share = found.ms() / watch.ms(marked[0], marked[-1])
    deciles = quantiles(taken, n=10, method="inclusive") if len(taken) > 1 else taken
    flops = config_cost(steps.model.config, tokens, settings["seqlen"], at_once).flops
    return {
        "tokens_per_s": 1e3 * tokens / step_ms,
        "step_ms": step_ms,
        "step_ms_low": deciles[0],
        "step_ms_high": deciles[-1],
        "attention_share": share,
        "peak_mib": peak,
        "tflops": flops / step_ms * 1e-9,
        "rows_at_once": at_once,
        "recomputed": recompute,
        "loss": loss.item(),
        **model_facts(steps.model, settings, settings["seqlen"]),
    }


def _prepare(settings: Settings, at_once: int, recompute: bool, tools: Tools) -> _Steps:
    from dmabench.tasks.model import DmabenchForCausalLM

    tools.progress(Progress("load", 0, 1))
    config, device = config_of(settings), torch.device(tools.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(settings["seed"])
        model = DmabenchForCausalLM(config)
    model.to(device).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if tools.compile:
        for layer in model.model.layers:
            layer.compile()
    draw = torch.Generator().manual_seed(settings["seed"])
    size = settings["batch"], settings["seqlen"] + 1
    ids = torch.randint(config.vocab_size, size, generator=draw)
    batch = split(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), 0, -(-settings["batch"] // at_once))
    module = LabelledLoss(model, RECIPE.precision)
    return _Steps(model, module, make_optimizer(module, RECIPE), batch, device)


TASK = Task(
    name="step",
    title="Training steps",
    about="Time training steps: tokens a second, memory, and which share of a step is attention.",
    examples=(
        "dmabench step",
        "dmabench step --size 30M --seqlen 8k --window 512 --compile",
        "dmabench step --size 1.7B --attention mha,dma --seqlen 2k,8k,32k",
    ),
    axes=AXES,
    defaults=DEFAULTS,
    presets=PRESETS,
    refusal=refusal,
    cost=cost,
    run=run,
    control=0.0,
    columns=("tokens_per_s", "step_ms", "attention_share", "peak_mib", "tflops", "rows_at_once", "recomputed"),
    complete=complete,
)
