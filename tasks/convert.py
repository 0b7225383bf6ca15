"""A Qwen3 checkpoint becomes a model of dmabench: the same weights, another attention.

    python -m dmabench.tasks.convert --init-from HF_DIR --attention dma --window 2048 --output DIR

What the attention has beyond Qwen3's (W_dt and A of dma, gates of nsa) starts as in a new model. With dma and a window
that covers the text, the converted model is nearly the original at first: all keys have nearly the same importance,
which softmax does not see. The tokenizer's files come along.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Qwen3ForCausalLM

from dmabench.tasks.config import ModelConfig
from dmabench.tasks.model import DmabenchForCausalLM

COPIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""What a Qwen3 configuration and ours have in common."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def init_from(folder: str | Path, attention: str = "dma", **overrides: Any) -> DmabenchForCausalLM:
    """The model with the weights of the Qwen3 checkpoint in `folder`, in their dtype.

    Args:
        attention: a kind or a pattern of mha, swa, nsa and dma.
        overrides: other fields of ModelConfig, such as window.

    Raises:
        ValueError: no checkpoint there, one that is no Qwen3, an attention that its weights do not fit, shapes that do
            not fit, or a setting that this model does not have.
    """
    folder = Path(folder).expanduser()
    config = converted_config(folder, attention, **overrides)
    source, info = Qwen3ForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
    )
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info.get(what):
            names = ", ".join(sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[what])[:3])
            raise ValueError(f"the weights in {folder} do not fit its own config.json ({what}: {names})")
    model = DmabenchForCausalLM(config).to(source.dtype)
    _copy(source.state_dict(), model, folder)
    model.generation_config = source.generation_config
    return model


def converted_config(folder: str | Path, attention: str = "dma", **overrides: Any) -> ModelConfig:
    """The settings of `init_from` with the same arguments, without reading weights; ValueError as there."""
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: --init-from takes the folder of a Hugging Face checkpoint")
    theirs = AutoConfig.from_pretrained(folder)
    if theirs.model_type != "qwen3":
        raise ValueError(f"{folder} holds a model of type {theirs.model_type!r}; --init-from converts qwen3 alone")
    rope = dict(theirs.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"{folder} has {rope['rope_type']} positions; a converted model has plain rotary positions")
    if getattr(theirs, "sliding_window", None) is not None:
        raise ValueError(f"{folder} has sliding-window layers of its own: only dense checkpoints are converted")
    settings = {name: getattr(theirs, name) for name in COPIED} | {"rope_parameters": rope}
    config = ModelConfig(**{**settings, "attention": attention, **overrides})
    if "mla" in config.kinds:
        raise ValueError("mla has other projections than Qwen3: its weights do not fit; choose mha, swa, nsa or dma")
    return config


def _copy(weights: dict[str, torch.Tensor], model: DmabenchForCausalLM, folder: Path) -> None:
    own = model.state_dict()
    wrong = [
        f"{name}: {tuple(weight.shape)} there, {tuple(own[name].shape) if name in own else 'nothing'} here"
        for name, weight in weights.items()
        if name not in own or own[name].shape != weight.shape
    ]
    if wrong:
        raise ValueError(
            f"the weights in {folder} do not fit the settings asked for: {'; '.join(wrong[:3])}"
            f"{' ...' if len(wrong) > 3 else ''}. Leave sizes as the checkpoint has them"
        )
    missing, _ = model.load_state_dict(weights, strict=False)
    new = ("W_dt", ".A", "g_proj.weight", "short_conv.weight")
    unexplained = [name for name in missing if not name.endswith(new)]
    if unexplained:
        raise ValueError(f"the checkpoint in {folder} lacks {', '.join(unexplained[:3])}")


def main(arguments: list[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="python -m dmabench.tasks.convert", description=__doc__.split("\n")[0])
    parser.add_argument("--init-from", metavar="HF_DIR", required=True, help="folder of a Qwen3 checkpoint")
    parser.add_argument("--attention", default="dma", help="mha, swa, nsa, dma or a pattern such as dma:3,mha:1")
    parser.add_argument("--window", type=int, default=2048, help="keys a query attends to")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the model goes")
    parser.add_argument("--seed", type=int, default=0, help="for what Qwen3 does not have")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    try:
        model = init_from(options.init_from, options.attention, window=options.window)
    except ValueError as error:
        parser.error(str(error))
    model.save_pretrained(options.output)
    for name in TOKENIZER_FILES:
        if (Path(options.init_from) / name).is_file():
            shutil.copy(Path(options.init_from) / name, options.output)
    print(f"{options.output}: {options.attention}, window {options.window}")


if __name__ == "__main__":
    main()
