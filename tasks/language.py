"""Language: pretraining on text, with perplexity and bits per byte on text that was held out.

    dmabench train --data books/ --size 30M --attention mha,dma --tokens 40e6

One cell is one model. Its checkpoint, tokenizer included, stays in the run's folder: cells/<cell>/model.
"""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

from dmabench.tasks import corpus, token_cache, tokenizer
from dmabench.tasks.document_losses import pack
from dmabench.tasks.heldout import MOST_LOGITS, TextLoss, text_loss
from dmabench.tasks.inference import inference_time
from dmabench.tasks.language_model import build, config_of, for_stage, rounded, save
from dmabench.tasks.language_presets import DEFAULTS, PRESETS
from dmabench.tasks.language_stages import AXES, Stage, complete, names_of, stages_of
from dmabench.tasks.packed import Packed, shares
from dmabench.tasks.recipe import Recipe
from dmabench.tasks.scoring import Score
from dmabench.tasks.task import Cost, Progress, Row, Settings, Task, Tools
from dmabench.tasks.task_model import config_cost, model_facts
from dmabench.tasks.token_cache import Documents, Tokens
from dmabench.tasks.tokenizer import Words
from dmabench.tasks.train import Trained, train
from dmabench.tasks.trained import held_out_curve

VALIDATIONS = 10
"""How often a stage looks at its validation loss."""
WARMUP = 0.05
"""Share of a stage's steps."""
AT_ONCE = 1 << 15
"""Tokens that go through the model at once in training, if their logits are no more than MOST_LOGITS."""
MODEL = "model"


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, or None. Text is not read for it, nor the hub asked."""
    try:
        config_of(settings, _vocabulary(settings))
        corpus.find(settings["data"], settings["heldout"], settings["text_field"])
        tokenizer.check(settings["tokenizer"])
    except ValueError as error:
        return str(error)
    return next((stage.refusal for stage in stages_of(settings) if stage.refusal), None)


def prepare(settings: Settings, told: token_cache.Told) -> str | None:
    """Tokenises the text of a cell, unless the cache has it. Returns a sentence about parts that were skipped."""
    words, tokens = _text(settings, told)
    config_of(settings, words.size)
    for stage, part in zip(stages_of(settings), _parts(settings, tokens), strict=True):
        Packed(part, stage.seqlen, settings["seed"])
    problems: str | None = tokens.about["problems"]
    return problems


def cost(settings: Settings) -> Cost:
    """What a cell takes: its stages, their validations and the test, whose forward takes a third of a step."""
    total = Cost(0, 0.0, 0.0)
    for stage in stages_of(settings):
        config = config_of(settings, _vocabulary(settings))
        if stage.window is not None:
            config.window = stage.window
        scored = (VALIDATIONS // 4 + 1) * settings["heldout_tokens"] // 3
        rows = _rows(stage, config.vocab_size)
        tokens = stage.steps * stage.batch * stage.seqlen
        found = config_cost(config, tokens + scored, stage.seqlen, rows)
        total = Cost(total.tokens + tokens, total.flops + found.flops, max(total.mib, found.mib))
    return total


@dataclass(frozen=True)
class Learned:
    """A model that was trained on text."""

    model: Any
    words: Words
    tokens: Tokens
    trainings: list[Trained]
    """One for each stage."""

    def test(self, model: Any, settings: Settings, tools: Tools) -> TextLoss:
        """Losses of a model (this one, or what was made of it) on the test text, in sequences of the last stage."""
        last = stages_of(settings)[-1]
        return _score(model, self.tokens.test, self.words, last.seqlen, settings["heldout_tokens"], tools)


def learn(settings: Settings, tools: Tools) -> Learned:
    """Trains one model in its stages.

    Raises:
        ValueError: text, tokenizer or checkpoint that do not fit, or a training that diverged.
    """
    words, tokens = _text(settings, lambda sentence: tools.progress(Progress(sentence, 0, 1)))
    model: Any = build(settings, words)
    trainings: list[Trained] = []
    for number, (stage, text) in enumerate(zip(stages_of(settings), _parts(settings, tokens), strict=True), start=1):
        own = replace(tools, folder=tools.folder / f"stage{number}")
        trainings.append(_train(for_stage(model, stage), text, tokens.validation, words, stage, settings, own))
        model = trainings[-1].model
    return Learned(model, words, tokens, trainings)


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Trains one model, scores it on the test text and saves it; one row.

    Raises:
        ValueError: as `learn`.
    """
    learned = learn(settings, tools)
    model, words, tokens, trainings = learned.model, learned.words, learned.tokens, learned.trainings
    last = stages_of(settings)[-1]
    row = row_of(learned, learned.test(model, settings, tools))
    if os.environ.get("RANK", "0") == "0":
        about = {"settings": names_of(settings), "text": tokens.about, "row": row}
        looks = [[asdict(look) for look in one.validations] for one in trainings]
        curves = {"loss": [one.curve for one in trainings], "validation": looks}
        save(model, words, {**about, **curves}, tools.folder / MODEL)
    ids, labels = Packed(tokens.train, min(last.seqlen, len(tokens.train) - 1), 0).batch(0, _rows(last, words.size))
    row["checkpoint"] = MODEL
    return [{**row, **model_facts(model, settings, last.seqlen), **inference_time(model, ids, labels, tools)}]


def _train(
    model: Any, text: Any, held: Documents, words: Words, stage: Stage, settings: Settings, tools: Tools
) -> Trained:
    rows = _rows(stage, words.size) * int(os.environ.get("WORLD_SIZE", "1"))
    recipe = Recipe(
        steps=stage.steps,
        batch=stage.batch,
        lr=stage.lr,
        warmup=WARMUP,
        accumulate=-(-stage.batch // rows),
        validate_every=-(-stage.steps // VALIDATIONS),
        seed=settings["seed"],
    )

    def validate(model: Any) -> Score:
        return text_loss(model, held, words.end, stage.seqlen, settings["heldout_tokens"] // 4).score

    return train(model, Packed(text, stage.seqlen, settings["seed"]), recipe, tools, validate)


def _score(model: Any, held: Documents, words: Words, seqlen: int, most: int, tools: Tools) -> TextLoss:
    total, done = min(most, len(held.tokens)), 0

    def told(tokens: int) -> None:
        nonlocal done
        done += tokens
        tools.progress(Progress("score", done, total))

    tools.progress(Progress("score", 0, total))
    return text_loss(model, held, words.end, seqlen, most, told)


def row_of(learned: Learned, tested: TextLoss) -> Row:
    """What a row says of a training and of a test of what was trained."""
    tokens, trainings = learned.tokens, learned.trainings
    whole, score, last = tested.whole, tested.score, trainings[-1]
    seconds, trained = sum(one.seconds for one in trainings), sum(one.tokens for one in trainings)
    positions = tested.by_position()
    validation = last.validation
    assert validation is not None
    return {
        "perplexity": whole.perplexity,
        "bits_per_byte": whole.bits_per_byte,
        "test_loss": score.loss,
        "accuracy": score.accuracy,
        "test_tokens": whole.tokens,
        "test_bytes": whole.bytes,
        "test_documents": len(tested.document_nll),
        "document_losses": pack(tested.document_nll, tested.document_tokens),
        "chance": 1 / tokens.about["vocabulary"],
        "validation_loss": validation.loss,
        "validation_accuracy": validation.accuracy,
        **held_out_curve(trainings),
        "loss": last.loss,
        "steps_done": sum(one.steps for one in trainings),
        "trained_tokens": trained,
        "epochs": trained / len(tokens.train),
        "train_s": seconds,
        "tokens_per_s": last.tokens_per_s,
        "stopped": last.stopped,
        "vocabulary": tokens.about["vocabulary"],
        "text": tokens.about["name"],
        "text_key": tokens.about["key"],
        "position_from": [part.start for part in positions],
        "position_perplexity": [part.perplexity for part in positions],
        "position_bits_per_byte": [part.bits_per_byte for part in positions],
        "note": tokens.about["problems"],
    }


def _text(settings: Settings, told: token_cache.Told) -> tuple[Words, Tokens]:
    texts = corpus.find(settings["data"], settings["heldout"], settings["text_field"])
    strict = bool(settings["strict"])
    if settings["tokenizer"] == tokenizer.TRAINED:
        words = token_cache.trained_tokenizer(texts, settings["vocab"], told, strict)
    else:
        words = tokenizer.named(settings["tokenizer"])
    _same_tokenizer(settings, words)
    wanted = sum(stage.tokens for stage in stages_of(settings)) + 1
    return words, token_cache.tokenised(texts, words, wanted, told, strict)


def _same_tokenizer(settings: Settings, words: Words) -> None:
    """ValueError where a checkpoint was trained with another tokenizer than the one that is named."""
    folder = settings["init_from"]
    if not folder or folder == settings["tokenizer"]:
        return
    if tokenizer.named(folder).digest() != words.digest():
        raise ValueError(
            f"the checkpoint in {folder} was trained with another tokenizer than {settings['tokenizer']}: "
            "its embedding means nothing there; leave out --tokenizer"
        )


def _parts(settings: Settings, tokens: Tokens) -> list[Any]:
    return shares(tokens.train, [stage.tokens for stage in stages_of(settings)])


def _rows(stage: Stage, vocabulary: int) -> int:
    """Sequences that go through the model at once."""
    logits = MOST_LOGITS * 4 // (rounded(vocabulary) * stage.seqlen)
    return max(1, min(stage.batch, AT_ONCE // stage.seqlen, logits))


def _vocabulary(settings: Settings) -> int | None:
    """Tokens, as far as that is known before text and tokenizer are read."""
    return tokenizer.LEAST if settings["tokenizer"] == tokenizer.BYTES else settings["vocab"]


TASK = Task(
    name="train",
    title="Language: pretraining on text",
    about="Train on text of a file, a folder, the hub or made up here; perplexity and bits per byte on held-out text.",
    examples=(
        "dmabench train",
        "dmabench train --data synthetic --attention mha,dma --tokens 2e5 --lr 1e-3,3e-3",
        "dmabench train --preset paper-1.7b --dry-run",
    ),
    axes=AXES,
    defaults=DEFAULTS,
    presets=PRESETS,
    refusal=refusal,
    cost=cost,
    run=run,
    control=0.0,
    columns=("perplexity", "bits_per_byte", "tokens_per_s", "parameters", "density", "epochs"),
    complete=complete,
    prepare=prepare,
    keeps=(MODEL,),
    chosen_by="validation_loss",
)
