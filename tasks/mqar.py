"""Multi-query associative recall: which attention can look up what it saw, among random tokens?

One cell is one model, trained on `recall_examples` and scored on the test split at the value of every key.
"""

import math
from typing import Any

from dmabench.tasks.curriculum import stages
from dmabench.tasks.inference import inference_time
from dmabench.tasks.mqar_presets import DEFAULTS, PRESETS
from dmabench.tasks.recall_examples import Layout, Recall, TrainingSet
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
from dmabench.tasks.train import Trained, train

VALIDATIONS = 10
"""How often a training looks at its validation accuracy."""
STOP_AT = 0.995
"""Validation accuracy that ends training."""
MOST_LOGITS = 1 << 27
"""Logits of one forward in scoring: half a GiB in float32."""

AXES: tuple[Axis, ...] = (
    Axis("pairs", int, "Pairs of a key and its value in a sequence; each is asked for once.", least=1),
    Axis("seqlen", int, "Tokens of a sequence, even, 4 a pair at least; default: as few.", least=2),
    Axis("vocab", int, "Tokens there are: a third each for keys, values and fillers.", least=4),
    Axis("power", float, "Exponent a of the law of gaps before queries; 1 makes them uniform."),
    Axis("fillers", bool, "Random tokens between queries; without: a blank."),
    Axis("examples", int, "Training examples, used again each epoch; 0: always new ones.", least=0),
    Axis("test_examples", int, "Sequences of the test; validation has a quarter of them.", least=4),
    Axis("curriculum", str, "Fewer pairs first: on (4, 16, 64, ...), off, or numbers of pairs such as 8+32+128."),
    *MODEL_AXES,
    *TRAIN_AXES,
    Axis("step_tokens", int, "Tokens a training step, from which --batch follows where it is not given.", least=1),
)


def layout_of(settings: Settings) -> Layout:
    """What the examples of a cell look like."""
    return Layout(**{name: settings[name] for name in ("pairs", "seqlen", "vocab", "power", "fillers")})


def complete(settings: Settings) -> Settings:
    """The shortest length, a window of one key a pair (16 at least, as nsa needs), a batch of `step_tokens`."""
    found = dict(settings)
    if found["seqlen"] is None:
        found["seqlen"] = 4 * found["pairs"]
    if found["window"] is None and found["attention"] in WINDOWED:
        found["window"] = max(16, found["pairs"])
    if found["batch"] is None:
        found["batch"] = max(1, found["step_tokens"] // found["seqlen"])
    found["step_tokens"] = None  # done with: cells of equal batches are equal
    return found


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, or None."""
    layout = layout_of(settings)
    if reason := layout.refusal():
        return reason
    try:
        plan = stages(settings["curriculum"], layout, settings["steps"])
    except ValueError as error:
        return str(error)
    if reason := next((reason for stage in plan if (reason := stage.layout.refusal())), None):
        return f"a stage of the curriculum cannot be: {reason}"
    if settings["lr"] <= 0:
        return f"--lr {settings['lr']:g} trains nothing: it must be above 0"
    return model_refusal(settings, settings["vocab"], settings["seqlen"])


def cost(settings: Settings) -> Cost:
    """What a cell takes: its training to the last step, its validations and its test."""
    T, steps = settings["seqlen"], settings["steps"]
    plan = stages(settings["curriculum"], layout_of(settings), steps)
    ends = [stage.first_step for stage in plan[1:]] + [steps]
    step_tokens = [settings["batch"] * T // stage.layout.seqlen * stage.layout.seqlen for stage in plan]
    tokens = sum((end - stage.first_step) * taken for stage, end, taken in zip(plan, ends, step_tokens, strict=True))
    scored = T * (settings["test_examples"] + VALIDATIONS * _validation_examples(settings))
    # A forward takes a third of a step; every token is counted as if in a sequence of the target's length.
    whole = train_cost(settings, tokens + scored // 3, T, settings["vocab"], labels=settings["pairs"])
    return Cost(tokens, whole.flops, whole.mib, scored)


def learn(settings: Settings, tools: Tools) -> Trained:
    """Trains the model of a cell.

    Raises:
        ValueError: settings that `refusal` names, or a training that diverged.
    """
    layout, seed, steps = layout_of(settings), settings["seed"], settings["steps"]
    model = build_model(settings, layout.vocab, layout.seqlen)
    validation = layout.make(seed, "validation", range(_validation_examples(settings)))
    recipe = Recipe(
        steps=steps,
        batch=settings["batch"],
        lr=settings["lr"],
        validate_every=math.ceil(steps / VALIDATIONS),
        stop_at=STOP_AT,
        seed=seed,
    )
    examples = TrainingSet(stages(settings["curriculum"], layout, steps), seed, settings["examples"])
    return train(model, examples, recipe, tools, lambda _: score(model, settings, validation), replay=True)


def test_of(settings: Settings) -> Recall:
    """The examples that a cell is tested on."""
    return layout_of(settings).make(settings["seed"], "test", range(settings["test_examples"]))


def score(model: Any, settings: Settings, recall: Recall) -> Score:
    """Answers of a model to these examples."""
    return predict(model, recall.input_ids, recall.labels, rows_at_once(settings)).score()


def rows_at_once(settings: Settings) -> int:
    """Sequences that go through the model at once in scoring."""
    return max(1, min(settings["batch"], MOST_LOGITS // (settings["pairs"] * settings["vocab"])))


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Trains and scores one cell; one row.

    Raises:
        ValueError: as `learn`.
    """
    layout, batch = layout_of(settings), rows_at_once(settings)
    trained = learn(settings, tools)
    model, steps = trained.model, settings["steps"]
    assert trained.validation is not None
    reached = Progress("score", trained.steps, steps, trained.loss, trained.validation.accuracy, trained.tokens_per_s)
    tools.progress(reached)
    test = test_of(settings)
    tested = score(model, settings, test)
    from dmabench.tasks.pairs_kept import pairs_kept  # imports the models, which tables of finished runs need not

    kept = pairs_kept(model, test, batch)
    return [
        {
            "accuracy": tested.accuracy,
            "correct": tested.correct,
            "total": tested.total,
            "chance": 1 / layout.pairs,
            "test_loss": tested.loss,
            **trained.facts(),
            "pairs_kept": kept.pairs_kept if kept else None,
            "live_in_pairs": kept.live_in_pairs if kept else None,
            **model_facts(model, settings, layout.seqlen),
            **inference_time(model, test.input_ids[:batch], test.labels[:batch], tools),
        }
    ]


def _validation_examples(settings: Settings) -> int:
    return settings["test_examples"] // 4


TASK = Task(
    name="mqar",
    title="Multi-query associative recall",
    about="Recall the values of keys seen among random tokens: every key once, at a random distance.",
    examples=(
        "dmabench mqar",
        "dmabench mqar --pairs 512 --seqlen 2k,4k --attention mha,dma --window 256,512",
        "dmabench mqar --preset h100 --dry-run",
    ),
    axes=AXES,
    defaults=DEFAULTS,
    presets=PRESETS,
    refusal=refusal,
    cost=cost,
    run=run,
    control=0.95,
    columns=("pairs_kept", "live_in_pairs", "density", "steps_done", "train_s"),
    complete=complete,
)
