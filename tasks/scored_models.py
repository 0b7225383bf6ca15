"""Models that are trained already, ours or others of Hugging Face, as rows tell of them: before they are loaded, and
when they are."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmabench.kernels import cost as operations
from dmabench.tasks.downstream import checkpoints
from dmabench.tasks.downstream.audit import Example, audit, layers_of
from dmabench.tasks.downstream.checkpoints import Loaded, Source
from dmabench.tasks.language_model import TRAINING
from dmabench.tasks.needle_scores import takes_logits_to_keep
from dmabench.tasks.task import Row


def local(name: str) -> Source:
    """A model by its folder or as untrained:PRESET, before its weights are looked at."""
    return Source(name, None if name.startswith(checkpoints.UNTRAINED) else Path(name).expanduser(), "")


def config_of(name: str) -> Any:
    """A model's configuration; None where it would have to be asked of the hub, ValueError where it cannot be read."""
    source = local(name)
    if source.folder is not None and not source.folder.is_dir():
        return None
    return checkpoints.config_of(source).get_text_config()


def too_long(name: str, config: Any, length: int) -> str | None:
    """Why a model cannot read so many tokens, or None."""
    limit = config.position_limit if hasattr(config, "kinds") else getattr(config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return None
    return f"{Path(name).name} has positions for {limit} tokens: --test-len {length} is too long"


def windowed(config: Any) -> bool:
    """Whether any layer has a window that can be set."""
    return bool(getattr(config, "has_window", False))


def outside_cost(name: str, config: Any, sequences: int, length: int) -> tuple[float, float]:
    """Operations and MiB of a forward of a model that is not ours, from the size of its weights: two operations a
    parameter and token, and causal attention."""
    weights = sum(path.stat().st_size for path in checkpoints.weight_files(Path(name).expanduser()))
    bytes_each = torch.empty(0, dtype=getattr(config, "dtype", None) or torch.float32).element_size()
    heads = getattr(config, "num_attention_heads", None) or 1
    pairs = operations.kept_pairs(length, length, None) * heads * config.num_hidden_layers
    attention = operations.flops("fwd", pairs, config.hidden_size // heads)
    return sequences * (2 * weights / bytes_each * length + attention), weights / 2**20


def trained_length(source: Source, config: Any) -> int | None:
    """Tokens of the sequences that a model was trained with last: as its training tells, else as its positions do; None
    where it has none."""
    if source.folder is not None and (told := source.folder / TRAINING).is_file():
        settings = json.loads(told.read_text(encoding="utf-8"))["settings"]
        return int(settings["stage2_seqlen"] if settings.get("stage2_tokens") else settings["seqlen"])
    scaled = getattr(config, "rope_parameters", None) or {}
    own = getattr(config, "trained_positions", None) or scaled.get("original_max_position_embeddings")
    return own or getattr(config, "max_position_embeddings", None)


def attention_of(config: Any) -> str:
    """What tables call the attention of a model: ours by their name, mha where every layer is dense and causal, else
    the model's type."""
    if hasattr(config, "kinds"):
        return str(config.attention)
    layers = getattr(config, "layer_types", None) or []
    usual = getattr(config, "num_attention_heads", None) and all(kind == "full_attention" for kind in layers)
    return "mha" if usual and not any(layers_of(config)) else str(config.model_type)


def label(source: Source) -> str:
    """What rows call a model: its folder's name and the beginning of its weights' hash, or its name on the hub."""
    if source.folder is None or not Path(source.named).expanduser().is_dir():
        return source.named
    folder = source.folder.resolve()
    return f"{folder.parent.name if folder.name == 'model' else folder.name}@{source.weights[:6]}"


def about(source: Source, loaded: Loaded) -> Row:
    """What every row says of its model: its name, the hash of its weights, its attention and window."""
    config = loaded.model.config
    return {
        "model": label(source),
        "weights": source.weights,
        "attention": attention_of(config.get_text_config()),
        "window": config.window if windowed(config) else None,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }


def facts(loaded: Loaded, length: int) -> Row:
    """Density, and whether any layer leaves keys out, at so many tokens."""
    found = audit([Example("needle", 0, length, length)], loaded.model.config.get_text_config())
    return {"density": found["density"], "sparsity_active": bool(found["sparsity_active"])}


def last_logits(model: Any, input_ids: Tensor, index: Tensor) -> Tensor:
    """As scoring.at_labels, for any causal model: logits of the end of each sequence, from the first label on."""
    T = input_ids.shape[1]
    first = int((index % T).min())
    if takes_logits_to_keep(model):
        logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=T - first).logits
    else:
        logits = model(input_ids=input_ids, use_cache=False).logits[:, first:]
    return logits[index // T, index % T - first]
