"""Where text comes from: a file, a folder, the hub, or nothing at all (`synthetic`).

find("books.jsonl.xz")   find("books/")   find("synthetic")   find("HuggingFaceTB/smollm-corpus:fineweb-edu-dedup")
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Literal, Protocol

from dmabench.tasks import hub_text, synthetic_text, text_files
from dmabench.tasks.text_problems import Problems

SYNTHETIC = "synthetic"
HUB_DEFAULT = "HuggingFaceTB/smollm-corpus:fineweb-edu-dedup"
HELD_OUT = ("validation", "valid", "val")
"""What the held-out file of a folder is called, before its suffixes; `train` are then the others."""
FEW = 40
"""Of so many documents one is for validation and one for the test; of fewer, each gives its end."""
PART = 0.05
"""Of the text of each of few documents, for validation and for the test."""

Stream = Literal["train", "validation", "test"]


class Corpus(Protocol):
    """Texts in an order."""

    @property
    def name(self) -> str:
        """As rows tell it: without folders of this machine."""
        ...

    @property
    def endless(self) -> bool:
        """Whether only as much is read as is asked for."""
        ...

    def digest(self) -> str:
        """Hash of the content, or of what fixes it."""
        ...

    def documents(self, problems: Problems) -> Iterator[str]:
        """All texts, none blank."""
        ...


@dataclass(frozen=True)
class Files:
    """Local files, one after the other."""

    name: str
    paths: tuple[Path, ...]
    field: str = "text"
    endless: bool = False

    def digest(self) -> str:
        """Of the files' content and the field that is read, not of their names."""
        joined = " ".join([self.field, *(text_files.digest(path) for path in self.paths)])
        return hashlib.sha256(joined.encode()).hexdigest()

    def documents(self, problems: Problems) -> Iterator[str]:
        """All texts; of several files, empty ones are skipped as broken lines are."""
        for path in self.paths:
            try:
                text_files.check(path)
            except ValueError as error:
                if len(self.paths) == 1:
                    raise
                problems.skip(path.name, str(error).removeprefix(f"{path.name} "))
                continue
            yield from text_files.documents(path, self.field, problems)


@dataclass(frozen=True)
class Synthetic:
    """Text made up here."""

    name: str = SYNTHETIC
    endless: bool = False

    def digest(self) -> str:
        """Of the generator's version."""
        return f"{SYNTHETIC} {synthetic_text.VERSION}"

    def documents(self, problems: Problems) -> Iterator[str]:
        """Always the same."""
        return synthetic_text.documents()


@dataclass(frozen=True)
class Texts:
    """A corpus and, where it has its own, the one held out."""

    train: Corpus
    heldout: Corpus | None

    def split(self, problems: Problems, enough: Callable[[], bool] = lambda: False) -> Iterator[tuple[Stream, str]]:
        """Every text with what it is for.

        Held-out text of its own is for validation and the test in turns. Without, every 20th document is held out; of
        fewer than 40, the last tenth of each.

        Args:
            enough: asked before each text that is not held out by name; True: there are no further ones.

        Raises:
            ValueError: no text at all, or what reading it refuses.
        """
        texts = takewhile(lambda _: not enough(), self.train.documents(problems))
        first = list(islice(texts, FEW))
        if not first:
            raise ValueError(f"{self.train.name} has no text{f' ({problems.sentence})' if problems.count else ''}")
        if self.heldout is not None:
            yield from (("train", text) for text in chain(first, texts))
            yield from _in_turns(self.heldout, problems)
        elif len(first) < FEW:
            for text in first:
                yield from zip(("train", "validation", "test"), _cut(text, 1 - 2 * PART, 1 - PART), strict=True)
        else:
            for number, text in enumerate(chain(first, texts)):
                yield {FEW // 2 - 1: "validation", FEW - 1: "test"}.get(number % FEW, "train"), text  # type: ignore[misc]


def find(data: str, heldout: str | None = None, field: str = "text", option: str = "data") -> Texts:
    """The text that is named. Nothing is read but names and sizes.

    Args:
        data: `synthetic`; a file or folder, also below DMABENCH_DATA; or org/name[:config] of the hub. In a folder
            with a `validation` file that one is held out, if `train` files are there too.
        heldout: text held out, instead of a part of `data`.
        field: of JSON lines and of the hub's rows.
        option: what `data` is called on the command line, for the message.

    Raises:
        ValueError: there is no such text, or it is empty or of no kind that can be read here.
    """
    train, own = _find(data, field, option)
    return Texts(train, _find(heldout, field, "heldout", whole=True)[0] if heldout else own)


def is_hub(data: str) -> bool:
    """Whether text of this name would be asked of the hub."""
    return data != SYNTHETIC and _local(data) is None


def _find(data: str, field: str, option: str, whole: bool = False) -> tuple[Corpus, Corpus | None]:
    if data == SYNTHETIC:
        return Synthetic(), None
    path = _local(data)
    if path is None:
        if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", data) and not Path(data.split("/")[0]).is_dir():
            return hub_text.HubText(data, field), None
        raise ValueError(
            f"--{option} {data}: there is no such file or folder; name one, `{SYNTHETIC}`, or org/name of the hub"
        )
    if path.is_file():
        text_files.check(path)
        return Files(path.name, (path,), field), None
    paths = tuple(sorted(one for one in path.iterdir() if text_files.is_text(one)))
    train = tuple(one for one in paths if one.name.split(".")[0].split("-")[0] == "train")
    held = tuple(one for one in paths if one.name.split(".")[0].split("-")[0] in HELD_OUT)
    if train and held and not whole:
        return Files(path.name, train, field), Files(f"{path.name}/validation", held, field)
    if not paths:
        raise ValueError(f"--{option} {data}: no file in this folder is a text (.jsonl, .txt, also packed)")
    return Files(path.name, paths, field), None


def _local(data: str) -> Path | None:
    """The file or folder of that name, here or below DMABENCH_DATA."""
    places = [Path(data).expanduser()]
    if os.environ.get("DMABENCH_DATA"):
        places.append(Path(os.environ["DMABENCH_DATA"]).expanduser() / data)
    return next((place for place in places if place.exists()), None)


def _in_turns(corpus: Corpus, problems: Problems) -> Iterator[tuple[Stream, str]]:
    texts = corpus.documents(problems)
    first = list(islice(texts, 2))
    if not first:
        raise ValueError(f"{corpus.name} has no text to hold out")
    if len(first) == 1:
        yield from zip(("validation", "test"), _cut(first[0], 0.5), strict=True)
        return
    for number, text in enumerate(chain(first, texts)):
        yield ("test" if number % 2 else "validation"), text


def _cut(text: str, *shares: float) -> list[str]:
    """The text in parts, cut at a space where there is one nearby."""
    ends = []
    for share in shares:
        at = int(share * len(text))
        space = text.find(" ", at, at + 100)
        ends.append(space if space >= 0 else at)
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
