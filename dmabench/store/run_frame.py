"""`dmabench.load_runs`: every row of every run as one pandas frame."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.errors import Refusal
from dmabench.store.environment import device_name
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.run_list import folder_of
from dmabench.store.runs import provenance, results_root, run_paths

if TYPE_CHECKING:
    import pandas

ABOUT = ("run", "folder", "command", "started", "run_status", "commit", "device", "versions")
"""Columns that say of every row where it comes from; those of the rows follow."""
NAMED = 3
"""So many problems of a run are named in its warning; all are in `attrs`."""


class DamagedRun(UserWarning):
    """Something of a run is not in the frame, or not yet."""


def load_runs(path: str | os.PathLike[str] | None = None) -> "pandas.DataFrame":
    """All rows of all runs anywhere under a folder, in one frame; nothing is averaged.

        import dmabench
        frame = dmabench.load_runs("results/reference/h100")
        frame[frame.status == "PASSED"].pivot_table("total_ms", ["run", "backend"], "seqlen")

    Args:
        path: a folder of runs, or one run; by default DMABENCH_RESULTS, else ./results. The runs of a folder named
            `reference` count where that folder is named.

    Returns:
        a row for each row stored, oldest run first, with its fields as columns (None or NaN where a command has no such
        field), and before them `run` (its name), `folder` (under path), `command`, `started` (UTC), `run_status`
        (finished, interrupted, running), `commit` (with "-dirty" where files were changed), `device`, `versions`.
        `attrs["problems"]` has one sentence for each line or run that was left out. An empty frame with those columns
        where there is nothing.

    Warns:
        DamagedRun: of each run: damaged rows were skipped (how many, and which); it was written by a newer dmabench and
            is left out; it is still being written, so that more may follow. And where there is no run.

    Raises:
        Refusal: there is no such folder.
    """
    root = results_root(None, create=False) if path is None else Path(path).expanduser()
    if not root.is_dir():
        raise Refusal(f"there is no folder {root}: name one that holds runs, as `dmabench list runs` shows them.")
    frame, told = frame_of(run_paths(root), root)
    for sentence in told:
        warnings.warn(sentence, DamagedRun, stacklevel=2)
    return frame


def frame_of(found: list[Path], root: Path) -> "tuple[pandas.DataFrame, list[str]]":
    """The frame of chosen runs under root, and the sentences that load_runs warns with."""
    import pandas

    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    told = [] if found else [f"no run under {root} yet: make one with `dmabench kernels --quick`"]
    for path in found:
        try:
            manifest = read_manifest(path)
            of_run, damaged = read_rows(path)
        except Refusal as refusal:
            problems.append(f"{path.name} is left out: {refusal}")
            told.append(problems[-1])
            continue
        problems += damaged
        told += _told(path.name, str(manifest.get("status")), len(of_run), damaged)
        about = _about(path, root, manifest)
        rows += [{**about, **row, **about, "device": row.get("device") or about["device"]} for row in of_run]
    frame = pandas.DataFrame(rows, columns=list(dict.fromkeys([*ABOUT, *(name for row in rows for name in row)])))
    frame.attrs["problems"] = problems
    return frame, told


def _about(path: Path, root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": path.name,
        "folder": folder_of(path, root),
        "command": manifest.get("command"),
        "started": (manifest.get("started") or "")[:19] or None,
        "run_status": manifest.get("status"),
        "device": device_name(manifest.get("environment") or {}),
        **provenance(manifest),
    }


def _told(name: str, status: str, rows: int, damaged: list[str]) -> list[str]:
    told = []
    if damaged:
        words = "; ".join(damaged[:NAMED]) + (f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else "")
        told.append(f"{name}: {len(damaged)} of its lines or cells left out: {words}")
    if status == "running":
        told.append(f"{name} is still being written, or its process was killed: {rows} row{'s' * (rows != 1)} so far")
    return told
