"""Models on the same held-out text: rows of perplexity and bits per byte, each paired with the first model."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.errors import Refusal
from dmabench.statistics.intervals import ratio_of_sums

if TYPE_CHECKING:
    from dmabench.tasks.downstream.checkpoints import Source
    from dmabench.tasks.heldout import TextLoss
    from dmabench.tasks.text_problems import Problems

Row = dict[str, Any]
LENGTH = 2048
"""Of sequences, for a model that does not tell at which length it was trained."""


@dataclass(frozen=True)
class Text:
    """What is scored."""

    name: str
    documents: list[str]


def read_text(data: str, field: str, problems: "Problems", most: int) -> Text:
    """The held-out files of a folder that has them, else all text; of the hub, enough for `most` tokens.

    Raises:
        ValueError: as dmabench.tasks.corpus.
    """
    from dmabench.tasks import corpus

    texts = corpus.find(data, field=field)
    chosen = texts.heldout or texts.train
    size = 0

    def wanted(text: str) -> bool:
        nonlocal size
        size += len(text)
        return not chosen.endless or size - len(text) < 8 * most  # no tokenizer makes 8 characters one token on average

    documents = list(takewhile(wanted, chosen.documents(problems)))
    if not documents:
        raise ValueError(f"{chosen.name} has no text{f' ({problems.sentence})' if problems.count else ''}")
    return Text(chosen.name, documents)


def score(
    label: str,
    source: "Source",
    text: Text,
    lengths: Sequence[int] | None,
    most: int,
    device: str,
    told: Callable[[int], None],
) -> list[tuple[Row, "TextLoss"]]:
    """A row for each length, and what it was made from.

    Args:
        lengths: of sequences; None: the one that the model was trained at, or LENGTH.

    Raises:
        ValueError: a tokenizer that does not fit the model, no text.
        Refusal: a length beyond what the model reads.
    """
    from dmabench.tasks.downstream.checkpoints import load
    from dmabench.tasks.heldout import text_loss
    from dmabench.tasks.task_model import density
    from dmabench.tasks.tokenizer import of_pretrained

    loaded = load(source, device)
    words = of_pretrained(loaded.tokenizer, source.named)
    limit = _reach(loaded.model.config)
    documents = [words.encode_with_bytes(document) for document in text.documents]
    config = loaded.model.config
    found = []
    for length in lengths or [min(limit, _trained_length(source.folder) or LENGTH)]:
        if length > limit:
            raise Refusal(f"--seqlen {length}: {source.named} reads {limit} tokens at most; take a shorter length")
        loss = text_loss(loaded.model, documents, words.end, length, most, told)
        whole, positions = loss.whole, loss.by_position()
        row = {
            "status": "PASSED",
            "model": label,
            "weights": source.weights,
            "attention": getattr(config, "attention", config.model_type),
            "window": config.window if getattr(config, "has_window", False) else None,
            "density": density(config, length) if hasattr(config, "kinds") else None,
            "seqlen": length,
            "text": text.name,
            "documents": len(loss.document_nll),
            "tokens": whole.tokens,
            "bytes": whole.bytes,
            "perplexity": whole.perplexity,
            "bits_per_byte": whole.bits_per_byte,
            "accuracy": loss.score.accuracy,
            "position_from": [part.start for part in positions],
            "position_perplexity": [part.perplexity for part in positions],
            "position_bits_per_byte": [part.bits_per_byte for part in positions],
        }
        found.append((row, loss))
    return found


def compare(scored: Sequence[tuple[Row, "TextLoss"]]) -> list[Row]:
    """The rows, with the interval of bits per byte over documents, and the difference from the first model at that
    length with its paired interval. None where there are too few documents, or where others were scored."""
    rows: list[Row] = []
    first: dict[int, tuple[list[float], list[float]]] = {}
    for row, loss in scored:
        bits = [nll / math.log(2) for nll in loss.document_nll]
        sizes = [float(size) for size in loss.document_bytes]
        base = first.setdefault(row["seqlen"], (bits, sizes))
        own, paired = None, None
        if len(bits) > 1:
            own = ratio_of_sums(bits, sizes)
            if base[0] is not bits and base[1] == sizes:
                paired = ratio_of_sums([a - b for a, b in zip(bits, base[0], strict=True)], sizes)
        rows.append(
            {
                **row,
                "low": own and own.low,
                "high": own and own.high,
                "difference": paired and paired.value,
                "difference_low": paired and paired.low,
                "difference_high": paired and paired.high,
            }
        )
    return rows


def _reach(config: Any) -> int:
    """Tokens that a model can read at once."""
    if hasattr(config, "position_limit"):
        return config.position_limit or sys.maxsize
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def _trained_length(folder: Path | None) -> int | None:
    """Of a model of `dmabench train`: that of its last stage."""
    from dmabench.tasks.language_model import TRAINING

    if folder is None or not (folder / TRAINING).is_file():
        return None
    settings = json.loads((folder / TRAINING).read_text(encoding="utf-8"))["settings"]
    return int(settings["stage2_seqlen"] or settings["seqlen"])
