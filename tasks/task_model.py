"""The model of a task: its axes, how it is built from the settings of a cell, what is sparse in it, what it costs."""

import functools
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dmabench.kernels import cost
from dmabench.tasks.kinds import POSITIONS, known_kinds, windowed_kinds
from dmabench.tasks.task import Axis, Cost, Settings

if TYPE_CHECKING:
    from dmabench.tasks.config import ModelConfig
    from dmabench.tasks.model import DmabenchForCausalLM

WINDOWED = windowed_kinds()
VARIANT = ("dma_importance", "dma_parametrisation", "dma_shared", "dma_bias", "dma_mask")
"""Fields of the config that ablations change; settings may have them, no axis of a task does."""
FFN = 2
"""Width of the feed-forward over that of the model."""

MODEL_AXES: tuple[Axis, ...] = (
    Axis("attention", str, "Which attention every layer has.", choices=known_kinds()),
    Axis("window", int, "Keys a query attends to.", least=1, only=WINDOWED),
    Axis("d_model", int, "Width of the model.", least=4),
    Axis("layers", int, "Layers.", least=1),
    Axis("heads", int, "Query heads, of d_model / heads each.", least=1),
    Axis("kv_heads", int, "Key/value heads.", least=1),
    Axis("positions", str, "How the model knows positions.", choices=POSITIONS),
    Axis("short_conv", int, "Width of a short convolution before every attention; 0: none.", least=0),
    Axis("mla_latent", int, "Numbers that mla caches for a token; default d_model / 4.", least=1, only=("mla",)),
    Axis(
        "nsa_topk",
        int,
        "Blocks that nsa selects (its block size stays); default: as many as make `window` keys with its own window.",
        least=3,
        only=("nsa",),
    ),
)
"""The same model for every attention: only what is named here differs between cells."""

TRAIN_AXES: tuple[Axis, ...] = (
    Axis("lr", float, "Learning rate, at its peak.", least=0),
    Axis("batch", int, "Sequences a training step.", least=1),
    Axis("steps", int, "Training steps at most.", least=1),
    Axis("seed", int, "Seed of weights and of data.", least=0),
)

Key = tuple[tuple[str, Any], ...]


def model_config(settings: Settings, vocab_size: int, max_positions: int) -> "ModelConfig":
    """The model of a cell.

    `heads` and `kv_heads` are equal where only one is given; the feed-forward is twice as wide as the model. `yarn`
    stretches positions from `settings["train_len"]` (default: max_positions / 4) to max_positions.

    Args:
        settings: values of MODEL_AXES by name; an axis that is missing or None takes the default of ModelConfig.
        max_positions: tokens of the longest sequence, in training or test.

    Raises:
        ValueError: settings that do not fit.
    """
    width, heads = settings["d_model"], settings.get("heads") or 1
    if width % heads or width // heads % 4:
        raise ValueError(
            f"d_model {width} over {heads} heads makes {width / heads:g} dims a head: it must be a multiple of 4; "
            "choose other --d-model or --heads"
        )
    fields: dict[str, Any] = {
        "attention": settings["attention"],
        "hidden_size": width,
        "num_hidden_layers": settings.get("layers") or 2,
        "num_attention_heads": heads,
        "num_key_value_heads": settings.get("kv_heads") or heads,
        "head_dim": width // heads,
        "intermediate_size": FFN * width,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_positions,
        "positions": settings.get("positions") or "rope",
        "short_conv": settings.get("short_conv") or 0,
        "mla_latent": settings.get("mla_latent"),
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    fields |= {name: settings[name] for name in ("window", *VARIANT) if settings.get(name) is not None}
    if fields["positions"] == "yarn":
        trained = settings.get("train_len") or -(-max_positions // 4)
        fields |= {"trained_positions": trained, "yarn_factor": max(1.0, max_positions / trained)}
    from dmabench.tasks.config import ModelConfig  # imports transformers, which tables of finished runs need not

    config = ModelConfig(**fields)
    if settings.get("nsa_topk") is not None and settings["attention"] == "nsa":
        config.nsa = asdict(replace(config.nsa_settings, select_count=settings["nsa_topk"]))
        config.check()
    return config


def model_refusal(settings: Settings, vocab_size: int, max_positions: int) -> str | None:
    """Why there can be no such model, or None."""
    try:
        model_config(settings, vocab_size, max_positions)
    except ValueError as error:
        return str(error)
    return None


def build_model(settings: Settings, vocab_size: int, max_positions: int) -> "DmabenchForCausalLM":
    """The model of a cell on the CPU in float32, with weights drawn from settings["seed"].

    The global random state stays as it was.

    Raises:
        ValueError: settings that do not fit, as `model_config`.
    """
    import torch

    from dmabench.tasks.model import DmabenchForCausalLM

    config = model_config(settings, vocab_size, max_positions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.get("seed") or 0)
        return DmabenchForCausalLM(config)


def density(config: "ModelConfig", seqlen: int) -> float:
    """Query-key pairs that are read over those of dense causal attention, mean over layers.

    nsa counts what each branch reads, overlaps and summaries of blocks included, so it can exceed 1.
    """
    dense = cost.kept_pairs(seqlen, seqlen, None)
    return sum(_pairs(config, kind, seqlen) for kind in config.kinds) / (len(config.kinds) * dense)


def sparsity_active(config: "ModelConfig", seqlen: int) -> bool:
    """Whether any layer leaves out keys of a sequence so long."""
    keys = {kind: config.window_of(kind) or seqlen for kind in config.kinds}
    if "nsa" in config.kinds:
        keys["nsa"] = config.nsa_settings.token_keys()
    return any(count < seqlen for count in keys.values())


def model_facts(model: "DmabenchForCausalLM", settings: Settings, seqlen: int) -> dict[str, Any]:
    """What a row says of its model: parameters, density and sparsity_active at `seqlen` tokens."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "density": density(model.config, seqlen),
        "sparsity_active": sparsity_active(model.config, seqlen),
    }


def train_cost(settings: Settings, tokens: int, seqlen: int, vocab: int, labels: int | None = None) -> Cost:
    """What training on `tokens` tokens in sequences of `seqlen` takes: operations, and peak memory on a GPU, estimated.

    Memory is that of float32 weights, gradients and AdamW (16 bytes a parameter) and of what a backward in bf16 keeps:
    about 30 numbers a token, layer and unit of width (a transformer layer with SwiGLU, counted by hand), and logits in
    float32 with their gradient.

    Args:
        labels: labelled positions of a sequence; default: all.
    """
    names = [axis.name for axis in MODEL_AXES]
    key = tuple((name, settings.get(name)) for name in (*names, "train_len"))
    return config_cost(_config(key, vocab, seqlen), tokens, seqlen, settings.get("batch") or 1, labels)


def config_cost(config: "ModelConfig", tokens: int, seqlen: int, batch: int, labels: int | None = None) -> Cost:
    """As `train_cost`, of any model.

    Args:
        batch: sequences that go through the model at once.
    """
    matrices, embedding = _sizes(config.to_json_string())
    vocab = config.vocab_size
    labelled = seqlen if labels is None else labels
    sequences = tokens / seqlen
    pairs = sum(_pairs(config, kind, seqlen) for kind in config.kinds) * config.num_attention_heads
    per_sequence = (
        cost.linear_flops("fwd+bwd", seqlen, matrices)
        + cost.linear_flops("fwd+bwd", labelled, embedding)
        + cost.flops("fwd+bwd", pairs, config.head_dim)
    )
    kept = 30 * 2 * config.hidden_size * config.num_hidden_layers * batch * seqlen + 8 * batch * labelled * vocab
    return Cost(tokens, sequences * per_sequence, (16 * (matrices + embedding) + kept) / 2**20)


def _pairs(config: "ModelConfig", kind: str, seqlen: int) -> int:
    """Query-key pairs of one head."""
    if kind == "nsa":
        return cost.sparse_pairs(seqlen, seqlen, **asdict(config.nsa_settings)).total
    return cost.kept_pairs(seqlen, seqlen, config.window_of(kind))


@functools.lru_cache(maxsize=1024)
def _config(key: Key, vocab: int, seqlen: int) -> "ModelConfig":
    return model_config(dict(key), vocab, seqlen)


@functools.lru_cache(maxsize=1024)
def _sizes(config: str) -> tuple[int, int]:
    """Parameters beside the embedding, and those of the embedding, of a config in JSON: a model on no device for each
    sort of cell, not for each cell."""
    from dmabench.tasks.config import ModelConfig
    from dmabench.tasks.parameters import parameters

    found = parameters(ModelConfig(**json.loads(config)))
    return found["total"] - found["embedding"], found["embedding"]
