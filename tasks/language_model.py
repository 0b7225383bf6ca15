"""The model of language training: from a size or a checkpoint, changed between stages, saved with its tokenizer."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.tasks.config import ModelConfig
from dmabench.tasks.language_stages import Stage, stages_of
from dmabench.tasks.presets import model_config
from dmabench.tasks.task import Settings
from dmabench.tasks.task_model import VARIANT
from dmabench.tasks.tokenizer import Words

if TYPE_CHECKING:
    from dmabench.tasks.model import DmabenchForCausalLM

MULTIPLE = 64
"""Of the vocabulary of a new model: rows that no token uses, so that matrix products have even shapes."""
TRAINING = "training.json"
"""Beside the weights: how they were made."""


def config_of(settings: Settings, vocabulary: int | None) -> ModelConfig:
    """The settings of the model, as the first stage trains it. Weights are not read for it.

    Args:
        vocabulary: tokens of the tokenizer; None: as many as the size or the checkpoint has.

    Raises:
        ValueError: settings that do not fit.
    """
    stages = stages_of(settings)
    fields = _own(settings)
    if stages[0].rope_base is not None:
        fields["rope_parameters"] = _rope(stages[0].rope_base)
    if settings["init_from"]:
        from dmabench.tasks.convert import converted_config

        config = converted_config(settings["init_from"], settings["attention"], **fields)
        if vocabulary is not None and vocabulary > config.vocab_size:
            raise ValueError(
                f"the tokenizer {settings['tokenizer']} has {vocabulary} tokens and the model in "
                f"{settings['init_from']} knows {config.vocab_size}: they do not belong together; leave out --tokenizer"
            )
    else:
        if vocabulary is not None:
            fields["vocab_size"] = rounded(vocabulary)
        config = model_config(settings["size"], settings["attention"], **fields)
    config.max_position_embeddings = max(config.max_position_embeddings, *(stage.seqlen for stage in stages))
    config.check()
    return config


def build(settings: Settings, words: Words) -> "DmabenchForCausalLM":
    """The model before its first step, on the CPU in float32; what is new in it is drawn from settings["seed"].

    Raises:
        ValueError: settings that do not fit, a checkpoint that cannot be converted or has another vocabulary.
    """
    import torch

    from dmabench.tasks.convert import init_from
    from dmabench.tasks.model import DmabenchForCausalLM

    config = config_of(settings, words.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        if not settings["init_from"]:
            config.bos_token_id = config.eos_token_id = words.end
            return DmabenchForCausalLM(config)
        fields = {**_own(settings), "max_position_embeddings": config.max_position_embeddings}
        if settings["rope_base"] is not None:
            fields["rope_parameters"] = _rope(settings["rope_base"])
        return init_from(settings["init_from"], settings["attention"], **fields).float()


def for_stage(model: "DmabenchForCausalLM", stage: Stage) -> "DmabenchForCausalLM":
    """The same weights with the positions, window and reach of a stage."""
    fields: dict[str, Any] = model.config.to_dict()
    if stage.rope_base is not None:
        fields["rope_parameters"] = _rope(stage.rope_base)
    if stage.window is not None:
        fields["window"] = stage.window
    fields["max_position_embeddings"] = max(fields["max_position_embeddings"], stage.seqlen)
    config = type(model.config)(**fields)
    if config.to_dict() == model.config.to_dict():
        return model
    changed = type(model)(config)
    changed.load_state_dict(model.state_dict())
    return changed


def save(model: Any, words: Words, about: dict[str, Any], folder: Path) -> None:
    """Writes a checkpoint that AutoModelForCausalLM and AutoTokenizer load (after `import dmabench.tasks.model`).

    An interruption leaves `folder` as it was. A disk that is full raises OSError and leaves nothing new.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.save_pretrained(unfinished)
        words.save(unfinished)
        (unfinished / TRAINING).write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def rounded(vocabulary: int) -> int:
    """Rows of the embedding for so many tokens."""
    return -(-vocabulary // MULTIPLE) * MULTIPLE


def _own(settings: Settings) -> dict[str, Any]:
    """Fields of the config that axes set; those that are None keep their default."""
    names = ("window", "positions", "short_conv", "mla_latent", "nsa", *VARIANT)
    return {name: settings[name] for name in names if settings.get(name) is not None}


def _rope(base: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": float(base)}
