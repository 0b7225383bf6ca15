"""Stored runs in formats that other programs read: every row and column (csv, parquet), or the run's tables (md)."""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.errors import Refusal
from dmabench.report.markdown import markdown
from dmabench.store.run_frame import frame_of

if TYPE_CHECKING:
    import pandas

FORMATS = ("csv", "parquet", "md")


def check(formats: Sequence[str]) -> None:
    """Refuses, before anything is read, a format that cannot be written here.

    Raises:
        Refusal: parquet without pyarrow.
    """
    if "parquet" in formats and importlib.util.find_spec("pyarrow") is None:
        raise Refusal("--format parquet needs the package pyarrow, which is not installed: pip install pyarrow, or csv")


def write(paths: Sequence[Path], root: Path, files: dict[str, Path]) -> list[str]:
    """Writes the rows of some runs under root to a file for each format.

    Args:
        files: format -> file.

    Returns:
        what a reader should know: damaged rows, runs that were left out.

    Raises:
        Refusal: a file cannot be written.
    """
    frame, told = frame_of(list(paths), root)
    for form, out in files.items():
        beside = out.with_name(out.name + ".new")  # a failed write leaves the last file standing
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            WRITERS[form](frame, paths, beside)
            os.replace(beside, out)
        except OSError as error:
            why = error.strerror or error
            raise Refusal(f"cannot write {out}: {why}. Name another file with --out FILE.") from error
    return told


def csv_text(frame: "pandas.DataFrame") -> str:
    """Every row and column; lists as JSON."""
    text: str = _flat(frame, every=True).to_csv(index=False)
    return text


def _write_csv(frame: "pandas.DataFrame", paths: Sequence[Path], out: Path) -> None:
    out.write_text(csv_text(frame), encoding="utf-8")


def _write_parquet(frame: "pandas.DataFrame", paths: Sequence[Path], out: Path) -> None:
    _flat(frame, every=False).to_parquet(out, engine="pyarrow", index=False)


def _write_markdown(frame: "pandas.DataFrame", paths: Sequence[Path], out: Path) -> None:
    out.write_text(markdown(paths), encoding="utf-8")


WRITERS: dict[str, Callable[["pandas.DataFrame", Sequence[Path], Path], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "md": _write_markdown,
}


def _flat(frame: "pandas.DataFrame", every: bool) -> "pandas.DataFrame":
    """Columns of lists as JSON text: `every` one, or (for parquet, which knows lists) those whose values are unlike."""
    flat = frame.copy()
    for name in flat.columns:
        if flat[name].dtype != object:
            continue
        values = [value for value in flat[name] if value is not None and value == value]
        nested = any(isinstance(value, list | dict) for value in values)
        mixed = len({type(value) for value in values}) > 1
        if nested if every else (mixed or (nested and not _is_arrow(values))):
            flat[name] = [value if isinstance(value, str) else _json(value) for value in flat[name]]
    return flat


def _json(value: Any) -> str | None:
    return None if value is None or value != value else json.dumps(value)


def _is_arrow(values: list[Any]) -> bool:
    """Can parquet hold these lists as they are?"""
    import pyarrow

    try:
        pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return False
    return True
