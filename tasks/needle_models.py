"""Needles in text for models that are trained already: `dmabench needle --model DIR --model ORG/NAME --data FILE`.

Haystacks stand in text_haystacks.py, the wording in needle_wording.py. Any causal model of Hugging Face can be asked.
"""

from pathlib import Path
from typing import Any

from dmabench.tasks import corpus, scored_models
from dmabench.tasks.downstream import checkpoints
from dmabench.tasks.haystacks import KINDS, counts
from dmabench.tasks.needle_scores import rows_at_once, score, summaries, timed
from dmabench.tasks.scored_models import config_of, last_logits, too_long, windowed
from dmabench.tasks.task import Axis, Cost, Mode, Progress, Row, Settings, Tools
from dmabench.tasks.task_model import config_cost
from dmabench.tasks.text_haystacks import TextHaystacks
from dmabench.tasks.text_pieces import Pieces
from dmabench.tasks.text_problems import Problems

AXES = (
    Axis(
        "model",
        str,
        "Score these and train none: a checkpoint's folder, org/name of the hub, or untrained:PRESET[:ATTENTION]; "
        "repeatable. Needles are sentences in RULER's wording, hidden in text. --window sets another than theirs.",
        names_model=True,
    ),
    Axis("data", str, "Text to hide them in: a file, a folder, org/name[:config] of the hub; default: synthetic."),
    Axis("text_field", str, "Field of JSON lines and of the hub's rows that has the text."),
    Axis("tokenizer", str, "Folder of another tokenizer than the model's own."),
)
TEXT: dict[str, Any] = {"data": corpus.SYNTHETIC, "text_field": "text", "needles": 4, "seed": 0, "kind": tuple(KINDS)}
MODE = Mode(
    about="scores models that are trained already",
    axes=("window", "test_len", "depth", "kind", "needles", "samples", "seed", *(axis.name for axis in AXES)),
    alone=("data", "text_field", "tokenizer"),
    defaults={
        "cpu": TEXT | {"test_len": "1k,2k", "depth": (0, 50, 100), "samples": 8},
        "cuda": TEXT | {"test_len": "1k:16k:x2", "depth": (0, 10, 25, 50, 75, 90, 100), "samples": 64},
    },
)
LABELS = 8
"""Tokens of an answer, about: for the cost alone."""
ROWS = 32
"""Sequences a forward at most: models from outside have large vocabularies."""


def complete(settings: Settings) -> Settings:
    """Lengths in their order, and no window for a model that has none: such controls are scored once."""
    found = {**settings, "test_len": tuple(sorted(settings["test_len"]))}
    try:
        config = config_of(settings["model"])
    except ValueError:  # `refusal` tells of it
        return found
    return found if config is None or windowed(config) else {**found, "window": None}


def refusal(settings: Settings) -> str | None:
    """Why a cell cannot be, as far as that is known without the hub and without reading text."""
    wrong = next((depth for depth in settings["depth"] if not 0 <= depth <= 100), None)
    if wrong is not None:
        return f"--depth {wrong} is not within 0 (needle first) and 100 percent (needle just before the question)"
    try:
        checkpoints.check_name(settings["model"])
        corpus.find(settings["data"], field=settings["text_field"])
        config = config_of(settings["model"])
        if config is None:
            return None
        checkpoints.check(scored_models.local(settings["model"]), [settings["window"]], settings["tokenizer"])
    except ValueError as error:
        return str(error)
    return too_long(settings["model"], config, min(settings["test_len"]))


def cost(settings: Settings) -> Cost:
    """Of scoring: a third of what training on as many tokens takes. Zero where the model is still on the hub."""
    config = config_of(settings["model"])
    total = Cost(0, 0.0, 0.0)
    if config is None:
        return total
    sequences = settings["samples"] * len(settings["depth"]) * len(settings["kind"])
    labels = LABELS * sum(counts(kind, settings["needles"])[1] for kind in settings["kind"]) // len(settings["kind"])
    for length in settings["test_len"]:
        if too_long(settings["model"], config, length):
            continue
        if hasattr(config, "kinds"):
            rows = rows_at_once("cuda", length, ROWS)
            config.window = settings["window"] or config.window
            found = config_cost(config, sequences * length, length, rows, labels)
            flops, mib = found.flops / 3, found.mib / config.num_hidden_layers
        else:
            flops, mib = scored_models.outside_cost(settings["model"], config, sequences, length)
        total = Cost(0, total.flops + flops, max(total.mib, mib))
    return total


def prepare(settings: Settings, told: Any) -> str | None:
    """Fetches the model, and makes its haystacks once, to see that they can be.

    Raises:
        ValueError: what `run` would refuse: a model that cannot be found, a tokenizer that does not serve, a text that
            is too short, haystacks shorter than their needles.
    """
    told(f"looking at {Path(settings['model']).name} and the text")
    source = checkpoints.find(settings["model"])
    checkpoints.check(source, [settings["window"]], settings["tokenizer"])
    problems = Problems()
    _haystacks(settings, Pieces(checkpoints.tokenizer_of(source, settings["tokenizer"])), problems)
    return problems.sentence


def run(settings: Settings, tools: Tools) -> list[Row]:
    """Scores one model at every length and depth, for every kind; a row without a score where a length is too long.

    Raises:
        ValueError: as `prepare`.
    """
    tools.progress(Progress("load", 0, 1))
    source = checkpoints.find(settings["model"])
    loaded = checkpoints.load(source, tools.device, tokenizer=settings["tokenizer"])
    if settings["window"] is not None:
        loaded.model.set_window(settings["window"])
    problems = Problems()
    haystacks = _haystacks(settings, Pieces(loaded.tokenizer), problems)
    config = loaded.model.config.get_text_config()
    refused = {length: why for length in settings["test_len"] if (why := too_long(source.named, config, length))}
    lengths = tuple(length for length in settings["test_len"] if length not in refused)
    trained = scored_models.trained_length(source, config)
    common = {
        **scored_models.about(source, loaded),
        "train_len": trained,
        "haystack": "text",
        "text": _text(settings).name,
        "text_tokens": len(haystacks.tokens),
        "haystack_key": haystacks.digest(),
        "note": problems.sentence,
    }
    found = score(
        lambda length: loaded.model,
        haystacks,
        settings["kind"],
        lengths,
        settings["depth"],
        settings["samples"],
        lambda done, cells: tools.progress(Progress("score", done, cells)),
        last_logits,
        ROWS,
    )
    rows = summaries(list(found), trained or max(settings["test_len"]))
    by_length = {}
    for number, length in enumerate(lengths):
        tools.progress(Progress("time", number, len(lengths)))
        clock = timed(loaded.model, haystacks, settings["kind"][0], length, tools, ROWS)
        by_length[length] = scored_models.facts(loaded, length) | clock
    told = [{**row, **common, **by_length[row["test_len"]]} for row in rows]
    for length, why in refused.items():
        # Depths stay those of the cell: the row is about all of them.
        told += [
            {**common, "test_len": length, "kind": kind, "status": "UNSUPPORTED", "reason": why}
            for kind in settings["kind"]
        ]
    return told


def _haystacks(settings: Settings, pieces: Pieces, problems: Problems) -> TextHaystacks:
    """Haystacks of a cell; ValueError where one would be too short, or the text is."""
    text = _text(settings)
    longest = max(settings["test_len"])
    found = TextHaystacks(text.documents(problems), text.name, pieces, settings["needles"], longest, settings["seed"])
    for kind in settings["kind"]:
        least, shortest = found.least(kind, settings["samples"]), min(settings["test_len"])
        if shortest < least:
            raise ValueError(
                f"--test-len {shortest} is too short for --kind {kind}: with this tokenizer its needles, as much text, "
                f"question and answer take {least} tokens; lengthen it, or take fewer --needles"
            )
    return found


def _text(settings: Settings) -> corpus.Corpus:
    """That which is held out, where the data have such; else all of it."""
    texts = corpus.find(settings["data"], field=settings["text_field"])
    return texts.heldout or texts.train
