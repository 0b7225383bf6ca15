"""The files of one run's folder: what a line may hold, how it gets on the disk and how it is read back."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal

SCHEMA = 1
MANIFEST, ROWS, SAMPLES = "manifest.json", "rows.jsonl", "samples.jsonl"


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest. Raises Refusal when it is missing, damaged or written by a newer dmabench."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{path} is not a run: it has no {MANIFEST}. `dmabench list runs` shows the runs.") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"the {MANIFEST} of {path} cannot be read ({error}): restore it or leave the run out.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise Refusal(f"the {MANIFEST} of {path} is no manifest (no schema number): restore it or leave the run out.")
    _refuse_newer(manifest["schema"], f"the {MANIFEST} of {path.name}")
    return manifest


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a run, and one sentence for each line that had to be skipped (file name and line number) and each
    cell that is not whole.

    Raises Refusal when the folder is no run, or a row was written by a newer dmabench.
    """
    read_manifest(path)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        lines = (path / ROWS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], [f"{path.name}/{ROWS} is missing"]
    except OSError as error:
        raise Refusal(f"cannot read {path.name}/{ROWS}: {error.strerror or error}. Leave the run out.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("schema"), int):
            problems.append(f"{path.name}/{ROWS}, line {number}: damaged, skipped")
            continue
        _refuse_newer(row["schema"], f"{path.name}/{ROWS}, line {number},")
        rows.append(row)
    whole, parts = _whole_cells(rows)
    return whole, problems + [f"{path.name}: {told}" for told in parts]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's raw samples, none where there is no such file. A damaged line is one that a crash cut off:
    its row was never stored, so it is skipped."""
    found = []
    try:
        lines = (path / SAMPLES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            sample = json.loads(line)
        except ValueError:
            continue
        if isinstance(sample, dict):
            found.append(sample)
    return found


def _whole_cells(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows without those of cells that miss parts, and without those of an earlier attempt at a cell; and what misses.
    Cells are in the order in which they were asked for, where rows tell it, and else as they were stored.

    A crash between the parts of a cell leaves some. A resumed run does such a cell again, from part 1.
    """
    latest: dict[str, dict[int | None, int]] = {}
    for at, row in enumerate(rows):
        if row.get("parts") is not None:
            if row.get("part") == 1:
                latest[row["cell"]] = {}
            latest.setdefault(row["cell"], {})[row.get("part")] = at
    kept, problems = set(), []
    for cell, parts in latest.items():
        count = max(rows[at]["parts"] for at in parts.values())
        if len(parts) == count:
            kept |= set(parts.values())
        else:
            problems.append(f"cell {cell} has {len(parts)} of its {count} rows, which are left out until a resume")
    whole = [row for at, row in enumerate(rows) if row.get("parts") is None or at in kept]
    return sorted(whole, key=lambda row: row.get("cell_number", 0)), problems


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of the run folder `path`, through a second file: a crash must not leave half of one."""
    beside = path / (MANIFEST + ".new")
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path / MANIFEST)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Adds one line and waits until it is on the disk. A line cut off by a crash before is ended first."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


# An absolute path: at the start of a word, one slash or more in it. Group 1 is its last part.
_PATH = re.compile(r"(?:^|(?<=[=,:\s'\"(]))/(?=[^\s/])(?:[^/,:=\s]+/)*([^/,:=\s]*)")


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy scalars unpacked, NaN and infinities null, absolute paths cut to their
    last part (a stored run must not tell where somebody's home is)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.name if value.is_absolute() else str(value)
    if isinstance(value, str):
        return _PATH.sub(r"\1", value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def plain_argument(argument: str) -> str:
    """One word of a command line, with the folders of an absolute path in it (which may hold spaces) cut off."""
    option, equals, value = argument.partition("=")
    if equals and value.startswith("/"):
        return f"{option}={Path(value).name}"
    return Path(argument).name if argument.startswith("/") else str(plain(argument))


def _refuse_newer(schema: int, what: str) -> None:
    if schema > SCHEMA:
        raise Refusal(
            f"{what} was written by a newer dmabench (schema {schema}, this one reads {SCHEMA}): update dmabench."
        )
