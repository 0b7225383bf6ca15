"""Texts in local files: JSON lines or plain text, also compressed.

books.jsonl.xz     one object a line, its text in the field "text"
book.txt           one document a file
"""

import bz2
import functools
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dmabench.tasks.text_problems import Problems

LINES, PLAIN = (".jsonl", ".ndjson", ".json"), (".txt", ".text", ".md", "")
PACKED = (".xz", ".gz", ".bz2", ".zst")
NO_TEXTS = ("readme", "license")
"""Names of files that a folder of texts may hold beside them."""
BLOCK = 1 << 22


def is_text(path: Path) -> bool:
    """Whether a file of a folder is taken for one of its texts, by its name."""
    name = path.name.lower()
    return path.is_file() and not name.startswith((".", *NO_TEXTS)) and _kind(path) in LINES + PLAIN[:-1]


def check(path: Path) -> None:
    """What a name and a size tell before a file is read.

    Raises:
        ValueError: an empty file, one of a kind that is not read here, or no module to unpack it.
    """
    if _kind(path) not in LINES + PLAIN:
        raise ValueError(
            f"{path.name} is no text that can be read here: JSON lines ({', '.join(LINES)}) or plain text "
            f"({', '.join(PLAIN[:-1])}), as it is or packed ({', '.join(PACKED)})"
        )
    if not path.stat().st_size:
        raise ValueError(f"{path.name} is empty")


def digest(path: Path) -> str:
    """SHA-256 of the file's content."""
    about = path.stat()
    return _digest(path.resolve(), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def documents(path: Path, field: str, problems: Problems) -> Iterator[str]:
    """The texts of a file, none of them blank. Broken lines go to `problems`.

    Args:
        field: of the objects of JSON lines, in which the text is.

    Raises:
        ValueError: a damaged file, JSON lines none of which has that field, or what `problems` refuses.
    """
    try:
        with _open(path) as file:
            yield from _lines(path, file, field, problems) if _kind(path) in LINES else _whole(path, file, problems)
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    except OSError as error:  # gzip and zstd tell of damage so too
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _lines(path: Path, file: BinaryIO, field: str, problems: Problems) -> Iterator[str]:
    found = 0
    fields: set[str] = set()
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            problems.skip(where, "no JSON")
            continue
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            fields.update(row if isinstance(row, dict) else ())
            problems.skip(where, f"no text in the field {field!r}")
        elif not _is_unicode(text):
            problems.skip(where, "half a character (a lone surrogate)")
        elif not text.strip():
            problems.skip(where, "a blank text")
        else:
            found += 1
            yield text
    if not found and fields:
        raise ValueError(
            f"no line of {path.name} has a text in the field {field!r}; the fields are "
            f"{', '.join(sorted(fields)[:8])}: name the right one with --text-field"
        )


def _whole(path: Path, file: BinaryIO, problems: Problems) -> Iterator[str]:
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.skip(path.name, f"no UTF-8 (byte {error.start})")
        return
    if text.strip():
        yield text
    else:
        problems.skip(path.name, "a blank text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(path: Path) -> str:
    """The suffix of what is packed."""
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def _open(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".xz":
        return lzma.open(path)
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".bz2":
        return bz2.open(path)
    if suffix == ".zst":
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError(f"{path.name}: reading .zst needs pyarrow (pip install pyarrow), or unpack it") from error
        return _Arrow(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


class _Arrow:
    """A stream of pyarrow, which has no lines of its own, as a file of Python."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> "_Arrow":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self) -> bytes:
        """All of it."""
        return bytes(self.stream.read())

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        while block := self.stream.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        if rest:
            yield rest
