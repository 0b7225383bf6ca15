"""What `dmabench list runs` tells of each run, without reading more than its manifest and its rows."""

from collections import Counter
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal
from dmabench.store.environment import device_name
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.runs import provenance, run_paths

UNREADABLE = "unreadable: "


def list_runs(root: Path) -> list[dict[str, Any]]:
    """One dict a run anywhere under root, oldest first; runs that cannot be read are listed too.

    Keys: name, folder (under root, "." for root itself), command, started (UTC), commit, device, status (of the run:
    running, finished, interrupted; or "unreadable: " and why), damaged (lines and cells that are left out), rows (how
    many), statuses {status of rows: how many}.
    """
    return [{"name": path.name, "folder": folder_of(path, root), **_summary(path)} for path in run_paths(root)]


def folder_of(path: Path, root: Path) -> str:
    """Where a run lies under root, its own name left out; "." where it lies in it, is it, or lies elsewhere."""
    return path.relative_to(root).parent.as_posix() if path.is_relative_to(root) else "."


def _summary(path: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(path)
        rows, problems = read_rows(path)
    except Refusal as refusal:
        blank = dict.fromkeys(("command", "started", "commit", "device"))
        return {**blank, "status": f"{UNREADABLE}{refusal}", "damaged": None, "rows": None, "statuses": {}}
    device = device_name(manifest.get("environment") or {})
    return {
        "command": manifest.get("command"),
        "started": (manifest.get("started") or "")[:19] or None,  # seconds are enough to read
        "commit": provenance(manifest)["commit"],
        "device": next((row["device"] for row in rows if row.get("device")), device),
        "status": str(manifest.get("status")),
        "damaged": len(problems),
        "rows": len(rows),
        "statuses": dict(Counter(str(row.get("status")) for row in rows)),
    }
