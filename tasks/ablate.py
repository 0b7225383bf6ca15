"""Ablations: what is DMA's importance worth, what its mask, its bias, a mask for each head - and what do masks do?

    dmabench ablate --on language,mqar --variant v-learned,random,constant,mha --seeds 3

One cell is one variant, trained like any model of `dmabench train` or `dmabench mqar`. It has a row for each attention
that it is tested with; the row of its own has the statistics of its masks (mask_statistics.py).
"""

from collections.abc import Callable
from statistics import fmean
from typing import Any

from dmabench.tasks.ablate_presets import DEFAULTS, PRESETS, fill
from dmabench.tasks.ablation_subjects import SUBJECTS, Learned, inner
from dmabench.tasks.ablation_variants import OWN, TESTED, VARIANTS, under_attention
from dmabench.tasks.mask_statistics import TIMES, chance_overlap, columns, mask_statistics
from dmabench.tasks.presets import PRESETS as SIZES
from dmabench.tasks.task import Axis, Cost, Progress, Row, Settings, Task, Tools
from dmabench.tasks.task_model import model_facts
from dmabench.tasks.trained import held_out_curve

AXES: tuple[Axis, ...] = (
    Axis("on", str, "What is trained on: text, or recall as dmabench mqar asks for it.", choices=tuple(SUBJECTS)),
    Axis("variant", str, "Where importance comes from, or what else differs from DMA.", choices=tuple(VARIANTS)),
    Axis(
        "tested",
        str,
        "Attentions that each trained model is tested with; its own always.",
        choices=(OWN, *TESTED),
        swept=False,
    ),
    Axis("seqlen", int, "Tokens of a sequence; default: 128 or 2048 for text, the shortest for recall.", least=2),
    Axis("window", int, "Keys a query attends to; default: a quarter of --seqlen, or one a pair.", least=1),
    Axis("vocab", int, "Tokens there are; default: as train and mqar have it.", least=4),
    Axis("size", str, "Of the model (language).", choices=tuple(SIZES)),
    Axis("data", str, "Text, as dmabench train takes it (language)."),
    Axis("heldout", str, "Text held out (language)."),
    Axis("tokenizer", str, "As dmabench train takes it (language)."),
    Axis("tokens", float, "Tokens to train on (language).", least=1),
    Axis("heldout_tokens", int, "Tokens of the test at most (language).", least=8),
    Axis("pairs", int, "Pairs in a sequence (mqar).", least=1),
    Axis("d_model", int, "Width of the model (mqar).", least=8),
    Axis("steps", int, "Training steps at most (mqar).", least=1),
    Axis("test_examples", int, "Sequences of the test (mqar).", least=4),
    Axis("step_tokens", int, "Tokens a training step; default: as train and mqar have it.", least=1),
    Axis("lr", float, "Learning rate, at its peak; default: as train and mqar have it.", least=0),
    Axis("seed", int, "Seed of weights and of data.", least=0),
)
COMMON = ("on", "variant", "tested", "seqlen", "window", "lr", "seed")
"""Axes of every cell; the others are of one subject or the other."""


def complete(settings: Settings) -> Settings:
    """Length, window, vocabulary and tokenizer as the task that is trained on has them; None for what it has not."""
    subject = SUBJECTS[settings["on"]]
    found = {name: value if name in (*COMMON, *subject.axes) else None for name, value in settings.items()}
    found = fill(found)
    trained = inner(found)
    return found | {name: trained[name] for name in ("seqlen", "window", "vocab", "tokenizer") if name in trained}


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, or None."""
    return SUBJECTS[settings["on"]].task.refusal(inner(settings))


def prepare(settings: Settings, told: Callable[[str], None]) -> str | None:
    """What the task that is trained on prepares."""
    task = SUBJECTS[settings["on"]].task
    return task.prepare(inner(settings), told) if task.prepare else None


def cost(settings: Settings) -> Cost:
    """Of training; each test with another attention adds a few percent."""
    return SUBJECTS[settings["on"]].task.cost(inner(settings))


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Trains a variant; a row for each attention that it is tested with, its own first.

    Raises:
        ValueError: as the task that is trained on.
    """
    own = inner(settings)
    learned = SUBJECTS[settings["on"]].learn(own, tools)
    told = _training(learned)
    rows: list[Row] = []
    for number, name in enumerate(names := list(dict.fromkeys([OWN, *settings["tested"]]))):
        tools.progress(Progress("score", number, len(names)))
        model = under_attention(learned.model, name)
        if model is None:
            continue
        facts = model_facts(model, own, own["seqlen"])
        if model.config.window_of(model.config.attention) is None:
            facts["sparsity_active"] = None  # it has no window that could be too wide
        row = {"tested": name, "attention": own["attention"], **learned.score(model), **told, **facts}
        row["loss_change"] = row["test_loss"] - rows[0]["test_loss"] if rows else 0.0
        rows.append(row)
    if settings["on"] == "language":
        rows[0] |= held_out_curve([learned.last])
    if own["attention"] == "dma":
        tools.progress(Progress("masks", 0, 1))
        rows[0] |= _masks(learned, own)
    return rows


def _training(learned: Learned) -> Row:
    last = learned.last
    assert last.validation is not None
    facts = last.facts()
    return {"validation_loss": last.validation.loss, "trained_tokens": facts.pop("tokens"), **facts}


def _masks(learned: Learned, own: Settings) -> Row:
    """Statistics of every head at each length, and their means at the length of training, before training too."""
    trained, window = own["seqlen"], learned.model.config.window_of("dma") or own["seqlen"]
    heads = mask_statistics(learned.model, learned.tokens(TIMES[-1] * trained), trained)
    device: Any = next(learned.model.parameters()).device
    before = mask_statistics(learned.untrained().to(device), learned.tokens(trained), trained)
    here = [head for head in heads if head.tokens == trained]
    return {
        "age": fmean(head.age for head in here),
        "overlap": _mean([head.overlap for head in here]),
        "overlap_untrained": _mean([head.overlap for head in before]),
        "overlap_chance": chance_overlap(window, trained),
        **columns(heads),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


TASK = Task(
    name="ablate",
    title="Ablations of DMA",
    about="Change one part of DMA at a time, on text or recall: scores, masks of heads, other attentions at test.",
    examples=(
        "dmabench ablate",
        "dmabench ablate --on mqar --variant v-learned,random,constant,mha --seeds 3",
        "dmabench ablate --preset h100 --data books/ --dry-run",
    ),
    axes=AXES,
    defaults=DEFAULTS,
    presets=PRESETS,
    refusal=refusal,
    cost=cost,
    run=run,
    control=0.0,
    columns=("test_loss", "loss_change", "perplexity", "overlap", "age", "density"),
    complete=complete,
    prepare=prepare,
    chosen_by="validation_loss",
)
