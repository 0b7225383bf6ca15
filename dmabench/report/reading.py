"""Runs as a report reads them: what cannot be read, or is not sound, is counted, named and left out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dmabench.errors import Refusal
from dmabench.store.environment import device_name
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.runs import provenance
from dmabench.tables.kernels import NUMBERS

Row = dict[str, Any]
SCORES = ("accuracy", "correct", "total", "chance", "test_loss", "validation_accuracy", "infer_ms", "perplexity")
LISTS = ("seqlen", "window", "heads", "kv_heads")
"""Of these, rows of trained models may hold one for each layer or stage."""


class Stored(NamedTuple):
    """One run. `problems` are sentences about rows of it that were left out."""

    name: str
    """The folder's, with a number behind it where two folders have the same."""
    path: Path
    manifest: dict[str, Any]
    rows: list[Row]
    problems: list[str]

    @property
    def command(self) -> str:
        """The command that made it: kernels, mqar ..."""
        return str(self.manifest.get("command") or "")

    @property
    def started(self) -> str:
        return str(self.manifest.get("started") or "")

    @property
    def commit(self) -> str:
        return provenance(self.manifest)["commit"]

    @property
    def device(self) -> str:
        return device_name(self.manifest.get("environment") or {})

    @property
    def where(self) -> str:
        """Device and commit, for a sentence."""
        return f"{self.device}, commit {self.commit}"


def read(paths: Iterable[Path]) -> tuple[list[Stored], list[str]]:
    """The runs that can be read, each row with its run, and a sentence for each line, cell, row or run left out."""
    found: list[Stored] = []
    problems: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            manifest = read_manifest(path)
            rows, damaged = read_rows(path)
        except Refusal as refusal:
            problems.append(f"{path.name} was left out: {refusal}")
            continue
        names = {one.name for one in found}
        numbered = (f"{path.name}-{number}" for number in range(2, len(found) + 3))
        name = path.name if path.name not in names else next(one for one in numbered if one not in names)
        sound = []
        for number, row in enumerate(rows, start=1):
            wrong = _unsound(row)
            if wrong:
                damaged.append(f"{path.name}, row {number} (cell {row.get('cell')}): damaged, skipped: {wrong}")
            else:
                sound.append({**row, "run": name})
        problems += damaged
        found.append(Stored(name, path, manifest, sound, damaged))
    return found, problems


def _unsound(row: Row) -> str | None:
    """Why a row is none that a command writes, or None."""
    if not isinstance(row.get("status"), str):
        return f"its status is {row.get('status')!r}"
    names = NUMBERS if row.get("function") else (*NUMBERS, *SCORES)
    for name in names:
        value = row.get(name)
        listed = isinstance(value, list) and name in LISTS and not row.get("function")
        if value is not None and not listed and not isinstance(value, int | float):
            return f"its {name} is {value!r}"
    return None
