"""The importance that a trained model gives the tokens of a text: delta of each of its dma layers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmabench.tasks import corpus
from dmabench.tasks.downstream import checkpoints
from dmabench.tasks.pairs_kept import watched
from dmabench.tasks.scored_models import config_of, label, local, trained_length
from dmabench.tasks.text_problems import Problems
from dmabench.tasks.tokenizer import of_pretrained


@dataclass(frozen=True)
class Shape:
    """What a model's configuration tells before its weights are read."""

    layers: tuple[int, ...]
    """Those with dma, counted from 0."""
    window: int
    heads: int
    kv_heads: int
    head_dim: int
    reach: int | None
    """Tokens that its positions reach to; None where it has none."""
    trained: int | None
    """Tokens of the sequences that it was trained with, as far as that is known."""


@dataclass(frozen=True)
class TextImportance:
    """What was read."""

    model: str
    """The folder's name and the beginning of the hash of its weights."""
    weights: str
    text: str
    """The text's name and the beginning of its hash."""
    deltas: dict[tuple[int, int], Tensor]
    """(window that the model was run with, layer) -> float32 [G, T] on the CPU, finite."""
    problems: str | None
    """What of the text was skipped."""


def shape_of(name: str) -> Shape:
    """The shape of a model's dma layers.

    Args:
        name: a checkpoint's folder, untrained:PRESET, or a name on the hub, which fetches it.

    Raises:
        ValueError: no such model, or no dma in it.
    """
    checkpoints.check_name(name)
    config = config_of(name) or checkpoints.config_of(checkpoints.find(name)).get_text_config()
    kinds = getattr(config, "kinds", ())
    layers = tuple(at for at, kind in enumerate(kinds) if kind == "dma")
    if not layers:
        has = f"its attention is {config.attention}" if kinds else f"it is a {config.model_type}, no model of dmabench"
        raise ValueError(f"{name} has no layer with dynamic mask attention ({has}): only those have importance")
    sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    return Shape(layers, config.window, *sizes, config.position_limit, trained_length(local(name), config))


def check(name: str, text: str, tokens: int | None) -> Shape:
    """What can be refused before weights and text are read; the model's shape.

    Raises:
        ValueError: as `shape_of`; no such text, or more tokens than the model's positions reach to.
    """
    shape = shape_of(name)
    _corpus(text)
    if tokens is not None and shape.reach is not None and tokens > shape.reach:
        raise ValueError(f"{name} has positions for {shape.reach} tokens: a length of {tokens} is too long")
    return shape


def read(
    name: str,
    text: str,
    tokens: int,
    device: str,
    windows: Sequence[int] = (),
    layers: Sequence[int] | None = None,
    shorter: bool = False,
) -> TextImportance:
    """Runs the model over the first tokens of a text (of a folder with a held-out file over that one).

    Args:
        tokens: how many.
        windows: to run it with, each for itself, since what a layer sees depends on it; default: its own.
        layers: to keep; default: all with dma.
        shorter: take what there is of a text that has fewer tokens.

    Raises:
        ValueError: no such model or text, a tokenizer that does not fit, a text that is too short, a layer without dma,
            importance that is not finite.
    """
    shape = check(name, text, tokens)
    wanted = shape.layers if layers is None else tuple(layers)
    check_layers(name, shape, wanted)
    problems, source, chosen = Problems(), checkpoints.find(name), _corpus(text)
    loaded = checkpoints.load(source, device)
    ids = _tokens(loaded, name, chosen, tokens, problems, shorter)
    deltas = {}
    for window in windows or [shape.window]:
        loaded.model.set_window(window)
        found = dict(zip(shape.layers, watched(loaded.model, ids), strict=True))
        for layer in wanted:
            delta = found[layer][0][0].float().cpu()
            if not bool(delta.isfinite().all()):
                raise ValueError(
                    f"importance in layer {layer} of {name} has NaN or infinite values: the gate A or the values "
                    "grew too large, or training diverged"
                )
            deltas[window, layer] = delta
    return TextImportance(label(source), source.weights, _text_label(chosen), deltas, problems.sentence)


def labels(name: str, text: str) -> tuple[str, str]:
    """`model` and `text` of what `read` returns, without running anything.

    Raises:
        ValueError: no such model or text.
    """
    return label(checkpoints.find(name)), _text_label(_corpus(text))


def check_layers(name: str, shape: Shape, layers: Sequence[int]) -> None:
    """ValueError, naming those that there are, for a layer without dma."""
    wrong = [layer for layer in layers if layer not in shape.layers]
    if wrong:
        own = ", ".join(map(str, shape.layers))
        raise ValueError(f"layer {wrong[0]} of {name} has no dma; layers with it, counted from 0: {own}")


def _text_label(chosen: corpus.Corpus) -> str:
    return f"{chosen.name}@{hashlib.sha256(chosen.digest().encode()).hexdigest()[:6]}"


def _corpus(text: str) -> corpus.Corpus:
    texts = corpus.find(text, option="text")
    return texts.heldout or texts.train


def _tokens(loaded: Any, name: str, chosen: corpus.Corpus, count: int, problems: Problems, shorter: bool) -> Tensor:
    """int64 [1, count]: documents one after the other, each ended as in training."""
    words = of_pretrained(loaded.tokenizer, name)
    ids = [words.end]
    for document in chosen.documents(problems):
        ids += words.encode([document])[0].tolist()
        if len(ids) >= count:
            break
    if len(ids) < count and not (shorter and len(ids) > 1):
        raise ValueError(
            f"the text {chosen.name} has {len(ids)} tokens for {name}, fewer than {count}: name a longer text or take "
            "a shorter length; text is not repeated"
        )
    return torch.tensor([ids[:count]])
