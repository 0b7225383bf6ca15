"""Text tokenised once, into files that are mapped into memory and kept by what they are made of.

    DMABENCH_CACHE, else ~/.cache/dmabench:
        tokens/<hash of text, tokenizer and split>/   train.bin  validation.bin  test.bin  about.json ...
        tokenizers/<hash of text and size>/           tokenizer.json ...

A folder is written beside its place and moved there when it is whole: an interruption or a full disk leaves nothing.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dmabench.tasks import tokenizer
from dmabench.tasks.corpus import Texts
from dmabench.tasks.hub_text import Unreachable
from dmabench.tasks.text_problems import Problems
from dmabench.tasks.tokenizer import Words

VERSION = 1
"""Of the files and of how text is split."""
ABOUT = "about.json"
HELD_OUT = ("validation", "test")
BATCH = 4_000_000
"""Characters tokenised at once."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Documents:
    """Held-out texts, one after the other."""

    tokens: NDArray[Any]
    """[N], each document ended by the token that ends a text."""
    sizes: NDArray[Any]
    """[N]: bytes of the text that each token adds."""
    ends: NDArray[np.int64]
    """[D]: where each document ends."""

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Tokens and bytes of each document."""
        for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True):
            yield self.tokens[start:end].astype(np.int64), self.sizes[start:end].astype(np.int64)


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus."""

    train: NDArray[Any]
    """[N], uint16 or uint32, mapped."""
    validation: Documents
    test: Documents
    about: dict[str, Any]
    """name, key, vocabulary, documents, problems (a sentence or None)."""


def cache_root() -> Path:
    """The folder of all caches."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dmabench"
    return Path(os.environ.get("DMABENCH_CACHE") or default).expanduser()


def trained_tokenizer(texts: Texts, size: int, told: Told, strict: bool = False) -> Words:
    """The tokenizer of `size` tokens trained on the beginning of the training text, from the cache if it is there.

    Raises:
        ValueError: as reading the text does; no room for the cache.
    """
    key = _key("tokenizer", _digest(texts, told), size)

    def make(folder: Path) -> None:
        told(f"training a tokenizer of {size} tokens on {texts.train.name}")
        problems = Problems(strict)
        tokenizer.train((text for stream, text in texts.split(problems) if stream == "train"), size).save(folder)

    return tokenizer.read(_kept("tokenizers", key, make))


def tokenised(texts: Texts, words: Words, at_least: int, told: Told, strict: bool = False) -> Tokens:
    """The text in tokens, from the cache if it is there.

    Args:
        at_least: tokens to train on, where the corpus is endless; else all are taken.
        told: hears a sentence about what takes long.
        strict: refuse broken lines instead of skipping them.

    Raises:
        ValueError: as reading the text does; no room for the cache, of which nothing is left then.
    """
    limit = at_least if texts.train.endless else None
    key = _key("tokens", _digest(texts, told), words.digest(), limit)

    def make(folder: Path) -> None:
        told(f"tokenising {texts.train.name}")
        about = _write(folder, texts, words, limit, Problems(strict))
        (folder / ABOUT).write_text(json.dumps({"name": texts.train.name, "key": key, **about}, indent=2))

    folder = _kept("tokens", key, make)
    about = json.loads((folder / ABOUT).read_text())
    if strict and about["problems"]:
        raise ValueError(f"{about['problems']}; repair the text, or leave out --strict")
    validation, test = (Documents(*_held(folder, name)) for name in HELD_OUT)
    return Tokens(_mapped(folder / "train.bin", about["dtype"]), validation, test, about)


def _digest(texts: Texts, told: Told) -> str:
    """Of the content. Without the hub, what was read of it before."""
    own = "" if texts.heldout is None else texts.heldout.digest()
    if not texts.train.endless:
        return f"{texts.train.digest()} {own}"
    known = cache_root() / "hub" / f"{_key('hub', texts.train.name)}.txt"
    try:
        found = texts.train.digest()
    except Unreachable:
        if not known.is_file():
            raise
        told(f"the hub does not answer: using what was read of {texts.train.name} before")
        return f"{known.read_text()} {own}"
    with _room(known.parent):
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(found)
    return f"{found} {own}"


def _write(folder: Path, texts: Texts, words: Words, limit: int | None, problems: Problems) -> dict[str, Any]:
    dtype = "uint16" if words.size <= 1 << 16 else "uint32"
    counts = dict.fromkeys(("train", *HELD_OUT), 0)
    written = dict.fromkeys(counts, 0)
    ends: dict[str, list[int]] = {name: [] for name in HELD_OUT}
    files: dict[str, BinaryIO] = {}
    try:
        for name in ("train", *HELD_OUT, *(f"{name}.sizes" for name in HELD_OUT)):
            files[name] = open(folder / f"{name}.bin", "wb")  # noqa: SIM115  closed below
        for stream, batch in _batches(texts.split(problems, lambda: limit is not None and written["train"] >= limit)):
            if stream == "train":
                for ids in words.encode(batch):
                    files["train"].write(ids.astype(dtype).tobytes())
                    written["train"] += len(ids)
            else:
                for text in batch:
                    ids, sizes = words.encode_with_bytes(text)
                    files[stream].write(ids.astype(dtype).tobytes())
                    files[f"{stream}.sizes"].write(sizes.astype("uint32").tobytes())
                    written[stream] += len(ids)
                    ends[stream].append(written[stream])
            counts[stream] += len(batch)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    for name in HELD_OUT:
        np.save(folder / f"{name}.ends.npy", np.asarray(ends[name], np.int64))
    return {
        "dtype": dtype,
        "vocabulary": words.size,
        "documents": counts,
        "tokens": written,
        "problems": problems.sentence,
    }


def _batches(texts: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Texts of a stream together, so that the tokenizer uses every core; the order within a stream stays."""
    waiting: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for stream, text in texts:
        if not text.strip():
            continue
        waiting.setdefault(stream, []).append(text)
        sizes[stream] = sizes.get(stream, 0) + len(text)
        if sizes[stream] >= BATCH:
            yield stream, waiting.pop(stream)
            sizes[stream] = 0
    yield from waiting.items()


def _held(folder: Path, name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    dtype = json.loads((folder / ABOUT).read_text())["dtype"]
    tokens, sizes = _mapped(folder / f"{name}.bin", dtype), _mapped(folder / f"{name}.sizes.bin", "uint32")
    return tokens, sizes, np.load(folder / f"{name}.ends.npy")


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    if not path.stat().st_size:  # nothing cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr((VERSION, *parts)).encode()).hexdigest()[:32]


def _kept(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of that key, made if it is not there. Of several processes one makes it and the others wait."""
    root = cache_root() / kind
    place = root / key
    if place.is_dir():
        return place
    with _room(root):
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / ".lock"):
            if place.is_dir():
                return place
            unfinished = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".unfinished", dir=root))
            try:
                make(unfinished)
                os.replace(unfinished, place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return place


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; a lock ends with the process that holds it."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        # The tokenizers library raises bare exceptions.
        full = number in (errno.ENOSPC, errno.EDQUOT) or f"(os error {errno.ENOSPC})" in str(error)
        if not (full or isinstance(error, OSError)):
            raise
        why = "the disk is full" if full else (getattr(error, "strerror", None) or str(error))
        raise ValueError(
            f"the cache of tokens cannot be written to {folder} ({why}), and nothing of it was left there: "
            "make room, or name another folder in DMABENCH_CACHE"
        ) from error
