"""What the examples of a task asked of a model: their lengths, what was cut, and whether sparsity was active at all."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dmabench.kernels.cost import density, kept_pairs, sparse_pairs
from dmabench.kernels.native_sparse import Settings

Layer = int | Settings | None
"""What bounds the keys of a layer's queries: a window, the settings of native sparse attention, or nothing."""


@dataclass(frozen=True)
class Example:
    """One example as the model saw it."""

    task: str
    number: int
    """lm-eval's doc_id."""
    tokens: int
    """Tokens of its longest request, before anything was cut."""
    read: int
    """Tokens that went through the model at once."""

    @property
    def truncated(self) -> bool:
        """Longer than the model reads: cut from the left, or (perplexity of a text) scored in several pieces."""
        return self.tokens > self.read


def longest(requests: Iterable[Example]) -> dict[str, list[Example]]:
    """task -> its examples, each with its longest request."""
    kept: dict[tuple[str, int], Example] = {}
    for one in requests:
        key = (one.task, one.number)
        if key not in kept or one.tokens > kept[key].tokens:
            kept[key] = one
    found: dict[str, list[Example]] = {}
    for (task, _), one in sorted(kept.items()):
        found.setdefault(task, []).append(one)
    return found


def audit(examples: list[Example], config: Any) -> dict[str, Any]:
    """Fields of a row: tokens_mean, tokens_max, and shares of the examples that were truncated and that had sparsity
    active; density is the mean over examples of kept query-key pairs over those of dense attention, all layers alike.

    Args:
        config: the model's configuration, ours or that of a Hugging Face model.
    """
    if not examples:
        return dict.fromkeys(("tokens_mean", "tokens_max", "truncated", "sparsity_active", "density"))
    layers = layers_of(config)
    share: Callable[[Iterable[Any]], float] = lambda values: sum(values) / len(examples)  # noqa: E731
    densities = {n: _density(layers, n) for n in {one.read for one in examples}}
    first = min((_first_sparse(layer) for layer in layers), default=float("inf"))
    return {
        "tokens_mean": share(one.tokens for one in examples),
        "tokens_max": max(one.tokens for one in examples),
        "truncated": share(one.truncated for one in examples),
        "sparsity_active": share(one.read >= first for one in examples),
        "density": share(densities[one.read] for one in examples),
    }


def layers_of(config: Any) -> list[Layer]:
    """What bounds the keys in each layer of a model."""
    if getattr(config, "model_type", None) == "dmabench":
        return [config.nsa_settings if kind == "nsa" else config.window_of(kind) for kind in config.kinds]
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if not kinds:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _density(layers: list[Layer], tokens: int) -> float:
    if not layers or tokens < 1:
        return 1.0
    return sum(_layer_density(layer, tokens) for layer in layers) / len(layers)


def _layer_density(layer: Layer, tokens: int) -> float:
    if isinstance(layer, Settings):
        # Branches overlap in short sequences: more reads than dense attention has pairs are no lower density.
        return min(1.0, sparse_pairs(tokens, tokens, **asdict(layer)).total / kept_pairs(tokens, tokens, None))
    return density(tokens, tokens, layer)


def _first_sparse(layer: Layer) -> float:
    """The shortest sequence in which a query of the layer cannot attend to every key before it."""
    if layer is None:
        return float("inf")
    return 1 + (layer.select_block * layer.select_count if isinstance(layer, Settings) else layer)
