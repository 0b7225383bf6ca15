"""Needles in haystacks of tokens: trained at one length, asked at any depth of that length and of longer ones.

    dmabench needle --extrapolate

What examples look like stands in haystacks.py, what is scored in needle_scores.py. With --model nothing is trained: see
needle_models.py.
"""

from collections.abc import Callable
from typing import Any

from dmabench.tasks import needle_models
from dmabench.tasks.haystacks import ANSWER, KINDS, Curriculum, Haystacks, TrainingExamples, counts, least_length
from dmabench.tasks.needle_presets import H100, PRESETS, QUICK
from dmabench.tasks.needle_scores import FORWARD_TOKENS, score, summaries, timed
from dmabench.tasks.recipe import Recipe
from dmabench.tasks.scoring import Score, predict
from dmabench.tasks.task import Axis, Cost, Progress, Row, Settings, Task, Tools
from dmabench.tasks.task_model import MODEL_AXES, TRAIN_AXES, build_model, model_facts, model_refusal, train_cost
from dmabench.tasks.train import train

STRETCHES = (1, 2, 4, 8)
"""Test lengths of --extrapolate, in trained lengths."""
VALIDATION = 128
"""Examples that training is validated on, of all kinds, at the trained length."""
VALIDATIONS = 20
"""Validations in a training."""

AXES = (
    *MODEL_AXES,
    Axis("train_len", int, "Tokens of a training sequence, its questions included.", least=1),
    Axis("test_len", int, "Lengths to test at; --train-len is always among them.", least=1, swept=False),
    Axis("extrapolate", bool, "Test at 1, 2, 4 and 8 times --train-len too."),
    Axis("depth", int, "Depths of the needle to test at, in percent of the hay.", least=0, swept=False),
    Axis("kind", str, "Ways to hide and to ask; a model is trained on all of them.", tuple(KINDS), swept=False),
    Axis("needles", int, "Needles in a haystack that has several.", least=2),
    Axis("vocab", int, "Tokens of the vocabulary.", least=1),
    Axis("samples", int, "Haystacks a length and depth.", least=1),
    Axis("stop_at", float, "Validation accuracy that ends training; 0: none does.", least=0),
    *TRAIN_AXES,
    *needle_models.AXES,
)


def complete(settings: Settings) -> Settings:
    """Test lengths: those asked for, those of --extrapolate, and the trained one, at which the control is checked."""
    if settings["model"]:
        return needle_models.complete(settings)
    trained = settings["train_len"]
    stretches = STRETCHES if settings.get("extrapolate") else (1,)
    lengths = {*(settings.get("test_len") or ()), *(trained * stretch for stretch in stretches)}
    return {**settings, "test_len": tuple(sorted(lengths))}


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, or None."""
    if settings["model"]:
        return needle_models.refusal(settings)
    needles, kinds = settings["needles"], settings["kind"]
    try:
        Haystacks(settings["vocab"], needles, settings["seed"], "test")
    except ValueError as error:
        return f"{error}; raise --vocab or take fewer --needles"
    for kind in kinds:
        least = least_length(kind, needles)
        for option, length in (("train-len", settings["train_len"]), ("test-len", min(settings["test_len"]))):
            if length < least:
                several = f"{counts(kind, needles)[0]} needles" if KINDS[kind].several else "one needle"
                return (
                    f"--{option} {length} is too short for --kind {kind}: {several}, as much hay and the questions "
                    f"take {least} tokens at least; lengthen it, or take fewer --needles"
                )
    if not all(0 <= depth <= 100 for depth in settings["depth"]):
        wrong = next(depth for depth in settings["depth"] if not 0 <= depth <= 100)
        return f"--depth {wrong} is not within 0 (needle first) and 100 percent (needle just before the questions)"
    if settings["lr"] <= 0:
        return f"--lr {settings['lr']:g} trains nothing: it must be above 0"
    return model_refusal(settings, settings["vocab"], max(settings["test_len"]))


def cost(settings: Settings) -> Cost:
    """Training, validations and scoring."""
    if settings["model"]:
        return needle_models.cost(settings)
    length, vocab = settings["train_len"], settings["vocab"]
    tokens = settings["steps"] * settings["batch"] * length
    asked = [counts(kind, settings["needles"])[1] for kind in settings["kind"]]
    labels = max(1, ANSWER * sum(asked) // len(asked))
    trained = train_cost(settings, tokens, length, vocab, labels)
    flops, mib = trained.flops, trained.mib
    sequences = settings["samples"] * len(settings["depth"]) * len(settings["kind"])
    validated = VALIDATIONS * VALIDATION * length
    flops += train_cost(settings, validated, length, vocab, labels).flops / 3
    for tested in settings["test_len"]:
        # A third of training's operations are forward; a forward keeps about one layer's activations.
        rows = max(1, FORWARD_TOKENS["cuda"] // tested)
        scored = train_cost({**settings, "batch": rows}, sequences * tested, tested, vocab, labels)
        flops += scored.flops / 3
        mib = max(mib, scored.mib / (settings.get("layers") or 1))
    return Cost(tokens, flops, mib, validated + sequences * sum(settings["test_len"]))


def prepare(settings: Settings, told: Callable[[str], None]) -> str | None:
    """Fetches a model to be scored and looks at its text; ValueError where they do not serve."""
    return needle_models.prepare(settings, told) if settings["model"] else None


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Trains one model, or loads it, and scores it at every length and depth, for every kind."""
    if settings["model"]:
        return needle_models.run(settings, tools)
    trained_len, lengths, seed, kinds = (settings[name] for name in ("train_len", "test_len", "seed", "kind"))
    train_data, validation_data, test_data = (
        Haystacks(settings["vocab"], settings["needles"], seed, split) for split in ("train", "validation", "test")
    )
    steps, batch = settings["steps"], settings["batch"]
    recipe = Recipe(
        steps=steps,
        batch=batch,
        lr=settings["lr"],
        validate_every=max(1, steps // VALIDATIONS),
        stop_at=settings["stop_at"] or None,
        seed=seed,
    )
    # YaRN stretches what was learned with rotary positions.
    rotary = {**settings, "positions": "rope"} if settings["positions"] == "yarn" else settings
    model = build_model(rotary, settings["vocab"], max(lengths))
    held_out = TrainingExamples(validation_data, kinds, trained_len).batch(0, VALIDATION)
    forward = max(1, FORWARD_TOKENS["cuda" if tools.device.startswith("cuda") else "cpu"] // trained_len)

    def validate(model: Any) -> Score:
        return predict(model, *held_out, forward).score()

    examples = Curriculum(TrainingExamples(train_data, kinds, trained_len), steps)
    trained = train(model, examples, recipe, tools, validate, replay=True)
    model = trained.model.eval()

    def model_at(length: int) -> Any:
        return stretched(model, settings, length) if settings["positions"] == "yarn" else model

    def told(done: int, cells: int) -> None:
        tools.progress(Progress("score", done, cells))

    about = trained.facts() | {"haystack": "tokens"}
    rows = list(score(model_at, test_data, kinds, lengths, settings["depth"], settings["samples"], told))
    by_length = {}
    for number, length in enumerate(lengths):
        tools.progress(Progress("time", number, len(lengths)))
        facts = model_facts(model, settings, length) | {"yarn_factor": None}
        if settings["positions"] == "yarn":
            facts["yarn_factor"] = max(1.0, length / trained_len)
        by_length[length] = facts | timed(model_at(length), test_data, kinds[0], length, tools)
    return [{**row, **about, **by_length[row["test_len"]]} for row in summaries(rows, trained_len)]


def stretched(model: Any, settings: Settings, length: int) -> Any:
    """The model with rotary positions stretched to `length` by YaRN; itself where it was trained so far."""
    if length <= settings["train_len"]:
        return model
    longer = build_model(settings, settings["vocab"], length)
    longer.load_state_dict(model.state_dict())
    return longer.to(next(model.parameters()).device).eval()


TASK = Task(
    name="needle",
    title="Needle in a haystack",
    about="Find needles in long haystacks, of tokens for models trained here, of text for any other (--model).",
    examples=(
        "dmabench needle --extrapolate",
        "dmabench needle --train-len 256 --test-len 256:2k:x2 --attention mha,dma --positions rope,yarn,none",
        "dmabench needle --model untrained:tiny:mha --model untrained:tiny:dma --data synthetic --test-len 1k,2k",
    ),
    axes=AXES,
    defaults={"cpu": QUICK, "cuda": H100},
    presets=PRESETS,
    refusal=refusal,
    cost=cost,
    run=run,
    control=0.9,
    columns=("kind", "test_len", "depth", "accuracy", "within", "beyond", "effective_length"),
    complete=complete,
    prepare=prepare,
    modes={"model": needle_models.MODE},
)
