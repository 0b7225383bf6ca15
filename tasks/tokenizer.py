"""Tokenizers: from a folder, from the hub, trained on the text, or none (a token a byte)."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES, TRAINED = "bytes", "trained"
END = "<|endoftext|>"
"""Ends every text, in tokenizers made here."""
LEAST = 257
"""Tokens: all bytes and END."""
TRAIN_CHARACTERS = 20_000_000
"""Of text that a tokenizer is trained on: its beginning."""
GPT2_FILES = ("encoder.json", "vocab.bpe")


@dataclass(frozen=True)
class Words:
    """A tokenizer as it is used here."""

    tokenizer: Any
    """transformers' PreTrainedTokenizerFast, to be saved beside a model."""
    end: int
    """The token that ends a text, and that one begins after."""

    @property
    def size(self) -> int:
        """Tokens."""
        return len(self.tokenizer)

    def digest(self) -> str:
        """Hash of everything that tokenising depends on."""
        return hashlib.sha256(f"{self.tokenizer.backend_tokenizer.to_str()} {self.end}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The tokens of each text, int64, ended by `end`."""
        found = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray([*one.ids, self.end], np.int64) for one in found]

    def encode_with_bytes(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens, ended by `end`, and how many bytes (UTF-8) of the text each adds; both int64 [N].

        A character that several tokens share counts with the first of them, and what the tokenizer drops with the
        token after it (at the end: with `end`), so that the sum is that of the text.
        """
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        upto = np.concatenate([[0], np.cumsum(1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))])
        ends = np.asarray([end for _, end in found.offsets] + [len(text)], np.int64)
        counted = np.diff(np.maximum.accumulate(upto[ends]), prepend=0)
        return np.asarray([*found.ids, self.end], np.int64), counted.astype(np.int64)

    def save(self, folder: Path) -> None:
        """Writes it where AutoTokenizer finds it."""
        self.tokenizer.save_pretrained(folder)


def named(name: str) -> Words:
    """The tokenizer of a folder, of the hub, or `bytes`.

    Raises:
        ValueError: none there, one that is not of the fast kind, or one without a token that ends a text.
    """
    if name == BYTES:
        return train((), LEAST)
    return of_pretrained(_gpt2(Path(name).expanduser()) or _pretrained(name), name)


def of_pretrained(tokenizer: Any, name: str) -> Words:
    """A tokenizer of transformers; `name` is for the message.

    Raises:
        ValueError: one that is not of the fast kind, or one without a token that ends a text.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"the tokenizer of {name} has no tokenizer.json (a fast tokenizer): convert it first")
    end = next((one for one in (tokenizer.eos_token_id, tokenizer.sep_token_id) if one is not None), None)
    if end is None:
        raise ValueError(f"the tokenizer of {name} has no token that ends a text (eos_token)")
    return Words(tokenizer, int(end))


def check(name: str) -> None:
    """What can be said of a name before anything is loaded.

    Raises:
        ValueError: a path that is not there.
    """
    if name in (BYTES, TRAINED) or Path(name).expanduser().is_dir():
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) or Path(name.split("/")[0]).is_dir():
        raise ValueError(
            f"--tokenizer {name}: there is no such folder; name one, {TRAINED}, {BYTES}, or org/name of the hub"
        )


def train(texts: Iterable[str], size: int) -> Words:
    """Byte-level BPE of at most `size` tokens: any text can be written with it.

    Raises:
        ValueError: a size below LEAST.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < LEAST:
        raise ValueError(f"a tokenizer of {size} tokens cannot write every text: it needs {LEAST}, one for each byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_beginning(texts), trainer)
    return _wrapped(tokenizer)


def read(folder: Path) -> Words:
    """What `save` wrote of a tokenizer that was trained here."""
    from tokenizers import Tokenizer

    return _wrapped(Tokenizer.from_file(str(folder / "tokenizer.json")))


def _wrapped(tokenizer: Any) -> Words:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    return Words(tokenizer, int(tokenizer.eos_token_id))


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    left = TRAIN_CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _gpt2(folder: Path) -> Any:
    """GPT-2's tokenizer from the files as OpenAI named them; None where they are not."""
    if not all((folder / name).is_file() for name in GPT2_FILES):
        return None
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE.from_file(*(str(folder / name) for name in GPT2_FILES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def _pretrained(name: str) -> Any:
    from transformers import AutoTokenizer

    check(name)
    path = Path(name).expanduser()
    try:
        return AutoTokenizer.from_pretrained(path if path.is_dir() else name)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ValueError(
            f"{name} has no tokenizer that can be loaded{offline}: {first}. "
            f"Name a folder with a tokenizer.json, {TRAINED} or {BYTES}"
        ) from error
