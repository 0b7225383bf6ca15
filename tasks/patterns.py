"""Copy, select, induce: the paper's three patterns of sparsity, one at a time, at sizes below and above the window.

One cell is one model, trained on one pattern of `pattern_examples` at one size and scored on its test split. What each
attention should do was written down before, in `pattern_predictions`.
"""

import math
from typing import Any

from dmabench.tasks.inference import inference_time
from dmabench.tasks.pattern_examples import Copy, Induce, Layout, Select, TrainingSet
from dmabench.tasks.pattern_predictions import needed, predicted
from dmabench.tasks.pattern_presets import DEFAULTS, PRESETS
from dmabench.tasks.recipe import Recipe
from dmabench.tasks.scoring import Score, predict
from dmabench.tasks.task import Axis, Cost, Progress, Row, Settings, Task, Tools
from dmabench.tasks.task_model import (
    MODEL_AXES,
    TRAIN_AXES,
    WINDOWED,
    build_model,
    model_facts,
    model_refusal,
    train_cost,
)
from dmabench.tasks.train import train

LAYOUTS: dict[str, tuple[type[Layout], tuple[str, ...]]] = {
    "copy": (Copy, ("distance", "copied")),
    "select": (Select, ("marked",)),
    "induce": (Induce, ("pairs",)),
}
"""Each pattern's examples, and the axes that are its sizes."""
TOKENS = {"select": 4, "induce": 8}
"""Tokens of a sequence for each that is marked, and for each pair: half of them are fillers."""
VALIDATIONS = 20
"""How often a training looks at its validation accuracy."""
STOP_AT = 0.995
"""Validation accuracy that ends training."""
MOST_LOGITS = 1 << 27
"""Logits of one forward in scoring: half a GiB in float32."""

AXES: tuple[Axis, ...] = (
    Axis("pattern", str, "What is to be learned.", choices=tuple(LAYOUTS)),
    Axis("seqlen", int, "Tokens of a sequence, answers included; default: twice what has to be in it.", least=2),
    Axis("distance", int, "copy: places between a token and its copy.", least=1),
    Axis("copied", int, "copy: tokens in a row; default: all that have room.", least=1),
    Axis("marked", int, "select: marked tokens, among seqlen - marked.", least=1),
    Axis("pairs", int, "induce: pairs of a key and its value.", least=1),
    Axis("vocab", int, "Tokens there are: a half each (induce: a third) for every sort and for fillers.", least=4),
    Axis("test_examples", int, "Sequences of the test; validation has a quarter of them.", least=4),
    *MODEL_AXES,
    *TRAIN_AXES,
    Axis("step_tokens", int, "Tokens a training step, from which --batch follows where it is not given.", least=1),
)


def layout_of(settings: Settings) -> Layout:
    """What the examples of a cell look like."""
    layout, sizes = LAYOUTS[settings["pattern"]]
    return layout(settings["seqlen"], settings["vocab"], **{name: settings[name] for name in sizes})


def complete(settings: Settings) -> Settings:
    """A length, what is copied, a batch, and a window of twice what can be asked for (16 at least, as nsa needs).

    Leaves out the sizes of other patterns, so that no cell runs twice.
    """
    found, pattern = dict(settings), settings["pattern"]
    own = LAYOUTS[pattern][1]
    for _, sizes in LAYOUTS.values():
        found |= {name: None for name in sizes if name not in own}
    if found["seqlen"] is None:
        if pattern == "copy":
            found["seqlen"] = 2 * (found["distance"] + (found["copied"] or found["distance"]))
        else:
            found["seqlen"] = TOKENS[pattern] * needed(found)
    if pattern == "copy" and found["copied"] is None:
        found["copied"] = max(1, found["seqlen"] - found["distance"])
    if found["window"] is None and found["attention"] in WINDOWED:
        found["window"] = max(16, 2 * needed(found))
    if found["batch"] is None:
        found["batch"] = max(1, found["step_tokens"] // found["seqlen"])
    found["step_tokens"] = None  # done with: cells of equal batches are equal
    return found


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, or None."""
    if reason := layout_of(settings).refusal():
        return reason
    if settings["lr"] <= 0:
        return f"--lr {settings['lr']:g} trains nothing: it must be above 0"
    return model_refusal(settings, settings["vocab"], settings["seqlen"])


def cost(settings: Settings) -> Cost:
    """What a cell takes: its training to the last step, its validations and its test."""
    T = settings["seqlen"]
    tokens = settings["steps"] * settings["batch"] * T
    scored = T * (settings["test_examples"] + VALIDATIONS * _validation_examples(settings))
    # A forward takes a third of a step.
    whole = train_cost(settings, tokens + scored // 3, T, settings["vocab"], labels=layout_of(settings).size)
    return Cost(tokens, whole.flops, whole.mib, scored)


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Trains and scores one cell; one row.

    Raises:
        ValueError: settings that `refusal` names, or a training that diverged.
    """
    layout, seed, steps = layout_of(settings), settings["seed"], settings["steps"]
    model = build_model(settings, layout.vocab, layout.seqlen)
    batch = max(1, min(settings["batch"], MOST_LOGITS // (layout.size * layout.vocab)))
    held_out = layout.make(seed, "validation", range(_validation_examples(settings)))

    def validate(model: Any) -> Score:
        return predict(model, *held_out, batch).score()

    recipe = Recipe(
        steps=steps,
        batch=settings["batch"],
        lr=settings["lr"],
        validate_every=math.ceil(steps / VALIDATIONS),
        stop_at=STOP_AT,
        seed=seed,
    )
    trained = train(model, TrainingSet(layout, seed), recipe, tools, validate, replay=True)
    model, validation = trained.model, trained.validation
    assert validation is not None
    tools.progress(Progress("score", trained.steps, steps, trained.loss, validation.accuracy, trained.tokens_per_s))
    input_ids, labels = layout.make(seed, "test", range(settings["test_examples"]))
    test = predict(model, input_ids, labels, batch).score()
    return [
        {
            "accuracy": test.accuracy,
            "correct": test.correct,
            "total": test.total,
            "exact_match": test.exact_match,
            "chance": layout.chance,
            "predicted": predicted(settings),
            "test_loss": test.loss,
            **trained.facts(),
            **model_facts(model, settings, layout.seqlen),
            **inference_time(model, input_ids[:batch], labels[:batch], tools),
        }
    ]


def _validation_examples(settings: Settings) -> int:
    return max(1, settings["test_examples"] // 4)


TASK = Task(
    name="patterns",
    title="Copy, select, induce",
    about="Copy at a fixed distance, select what is marked, induce by association: the three patterns of sparsity.",
    examples=(
        "dmabench patterns",
        "dmabench patterns --pattern induce --pairs 4,8,16 --window 8,16,32 --attention mha,swa,dma",
        "dmabench patterns --preset h100 --dry-run",
    ),
    axes=AXES,
    defaults=DEFAULTS,
    presets=PRESETS,
    refusal=refusal,
    cost=cost,
    run=run,
    control=0.95,
    columns=("predicted", "chance", "density", "steps_done", "train_s"),
    complete=complete,
)
