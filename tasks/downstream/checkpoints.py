"""A model, its tokenizer and the hash of its weights, from a folder, the hub or nothing (random weights)."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNTRAINED = "untrained:"
"""In front of a preset's name: random weights and a tokenizer of bytes, so that a command runs without any file."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Source:
    """Where a model comes from, before it is loaded."""

    named: str
    """As on the command line."""
    folder: Path | None
    """Its checkpoint; None for untrained models."""
    weights: str
    """First 16 hex digits of the SHA-256 of its weight files; for untrained models what they are made of."""


@dataclass
class Loaded:
    """A model that is ready to be scored."""

    model: Any
    tokenizer: Any


def check_name(name: str) -> None:
    """What can be said of a model's name before anything heavy is imported.

    Raises:
        ValueError: a path without a checkpoint. A path is never taken for a name on the hub: what looks like one, or
            begins in a folder that is there, must be there.
    """
    if name.startswith(UNTRAINED):
        return
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{name} has no config.json: name the folder that model.save_pretrained wrote")
        if not weight_files(path):
            raise ValueError(f"{name} has a config.json and no weights (*.safetensors or *.bin beside it)")
        return
    if path.is_file():
        raise ValueError(f"{name} is a file: name the folder of the checkpoint, {path.parent}")
    first = name.split("/")[0]
    hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name)
    if not hub_name or (("/" in name) and Path(first).is_dir()):
        raise ValueError(f"there is no folder {name}: a model is a checkpoint's folder or a name on the hub (org/name)")


def find(name: str) -> Source:
    """Finds a model, from the hub where no folder has that name, and hashes its weights.

    Raises:
        ValueError: no such folder and no such name on the hub, or the hub cannot be reached.
    """
    check_name(name)
    if name.startswith(UNTRAINED):
        return Source(name, None, name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _from_hub(name)
    return Source(name, folder, _hash(weight_files(folder)))


def check(source: Source, windows: Sequence[int | None] = (), tokenizer: str | None = None) -> None:
    """What `load` and `set_window` would refuse, told before anything is loaded that takes long.

    Raises:
        ValueError: a configuration that cannot be read, a window for a model without one, no tokenizer.
    """
    import dmabench.tasks.model  # noqa: F401  registers the configuration with transformers

    config = config_of(source)
    for window in windows:
        if window is not None and not getattr(config, "has_window", False):
            has = f"its attention is {config.attention}" if hasattr(config, "kinds") else "it is no model of dmabench"
            raise ValueError(f"--window {window}: {source.named} has no window to set ({has}); leave --window out")
    if source.folder is not None or tokenizer:
        tokenizer_of(source, tokenizer)


def load(source: Source, device: str, dtype: str = "auto", tokenizer: str | None = None) -> Loaded:
    """The model on `device` in evaluation mode, and its tokenizer.

    Args:
        dtype: auto (that of the checkpoint), fp32, bf16 or fp16.
        tokenizer: the folder of another one than the checkpoint's own.

    Raises:
        ValueError: weights that do not fit, no tokenizer, or one with more tokens than the model knows.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    import dmabench.tasks.model  # noqa: F401  registers the model with transformers

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    words = tokenizer_of(source, tokenizer)
    if source.folder is None:
        model = _untrained(source)
        if dtype != "auto":
            model = model.to(getattr(torch, DTYPES[dtype]))
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=DTYPES.get(dtype, dtype))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"the model in {source.named} cannot be loaded: {first}") from error
    known = model.config.get_text_config().vocab_size
    if len(words) > known:
        raise ValueError(
            f"the tokenizer of {source.named} has {len(words)} tokens and the model knows {known}: "
            "they do not belong together; name the right one with --tokenizer DIR"
        )
    return Loaded(model.to(device).eval(), words)


def reads(model: Any, tokenizer: Any) -> int:
    """Tokens that the model can read at once."""
    from lm_eval.models.utils import resolve_max_length

    config = model.config
    limit = getattr(config, "position_limit", None)  # yarn reaches beyond max_position_embeddings
    return int(limit or resolve_max_length(config, tokenizer))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
        if not weight_files(folder):
            folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, "*.bin"]))
    except Exception as error:  # its own classes, those of its HTTP library, and OSError
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, LocalEntryNotFoundError):  # its sentence is about how to turn the hub on again
            first = "it cannot be reached, and the model was not fetched before"
        raise ValueError(
            f"there is no folder {name} here, and the hub does not give a model of that name ({first}). "
            "Name the folder of a checkpoint; `untrained:tiny` runs without one"
        ) from error
    if not weight_files(folder):
        raise ValueError(f"{name} on the hub has no weights (*.safetensors or *.bin)")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Where a checkpoint's weights are."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def tokenizer_of(source: Source, other: str | None = None) -> Any:
    """The tokenizer of a model, or of the folder `other`.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer

    if source.folder is None and other is None:
        return _byte_tokenizer()
    folder = Path(other).expanduser() if other else source.folder
    if other and not Path(other).expanduser().is_dir():
        raise ValueError(f"--tokenizer {other}: there is no such folder")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"{other or source.named} has no tokenizer that can be loaded: save one beside the weights "
            "(tokenizer.save_pretrained), or name the folder of one with --tokenizer DIR"
        ) from error


def config_of(source: Source) -> Any:
    """The configuration; of an untrained model that of untrained:PRESET or untrained:PRESET:ATTENTION.

    Raises:
        ValueError: one that cannot be read.
    """
    from transformers import AutoConfig

    import dmabench.tasks.model  # noqa: F401  registers the configuration with transformers
    from dmabench.tasks.presets import model_config

    if source.folder is None:
        preset, _, attention = source.named.removeprefix(UNTRAINED).partition(":")
        return model_config(preset, attention or "dma")
    try:
        return AutoConfig.from_pretrained(source.folder)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"the config.json of {source.named} cannot be used: {first}") from error


def _untrained(source: Source) -> Any:
    """Always the same random weights."""
    import torch

    from dmabench.tasks.model import DmabenchForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DmabenchForCausalLM(config_of(source))


def _byte_tokenizer() -> Any:
    """A token a byte: 256 of them, none special but byte 0, which ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level BPE writes byte 0 as the first of these letters once they are sorted by byte.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = letters[-1]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)
