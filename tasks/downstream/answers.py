"""Answers of one model to one task, batch by batch, on disk: an interrupted task goes on where it was."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO


def key(batch: Iterable[Any]) -> str:
    """A name for a batch made of its content (token numbers and text)."""
    return hashlib.sha1(repr(list(batch)).encode()).hexdigest()


class Answers:
    """key of a batch -> what the model answered. One object a model and task, so that models never share an answer."""

    def __init__(self, stem: Path | None = None, rank: int = 0) -> None:
        """Reads what processes of an earlier attempt wrote: all files `stem`.<rank>.jsonl.

        Args:
            stem: path without an ending; None keeps answers in memory alone.
        """
        self._stem, self._rank = stem, rank
        self._known: dict[str, list[Any]] = {}
        self._file: TextIO | None = None
        if stem is not None:
            stem.parent.mkdir(parents=True, exist_ok=True)
            for path in sorted(stem.parent.glob(f"{stem.name}.*.jsonl")):
                self._read(path)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> list[Any]:
        return self._known[name]

    def __len__(self) -> int:
        return len(self._known)

    def add(self, name: str, answers: list[Any]) -> None:
        """Keeps what this process computed, on disk too."""
        self._known[name] = answers
        if self._stem is None:
            return
        if self._file is None:
            path = self._stem.with_name(f"{self._stem.name}.{self._rank}.jsonl")
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  open for as long as the task runs
            self._file.write("\n" if path.stat().st_size else "")  # ends a line that a crash cut off
        self._file.write(json.dumps([name, answers]) + "\n")
        self._file.flush()

    def update(self, others: dict[str, list[Any]]) -> None:
        """Takes what another process computed."""
        self._known.update(others)

    def close(self) -> None:
        """Ends writing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def delete(self) -> None:
        """Deletes the files of all processes, once the task's rows are stored."""
        if self._stem is not None:
            for path in self._stem.parent.glob(f"{self._stem.name}.*.jsonl"):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: of another task
                self._stem.parent.rmdir()

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                name, answers = json.loads(line)
            except ValueError:
                continue  # the line that was being written when it stopped
            self._known[name] = [tuple(one) if isinstance(one, list) else one for one in answers]
