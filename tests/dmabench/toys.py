"""The toy task, installed as another package's, and the command line in this process or in one of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMIT = "0123456"
METADATA = "Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n"


def install(folder: Path, name: str = "toy") -> Path:
    """What an installed distribution looks like: a module, and metadata with an entry point."""
    shutil.copy(Path(__file__).parent / "toy_task.py", folder)
    metadata = folder / "toy_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)
    (metadata / "entry_points.txt").write_text(f"[dmabench.tasks]\n{name} = toy_task:TASK\n")
    return folder


def process(installed: Path, *words: Any, launcher: tuple[str, ...] = (), **options: Any) -> "subprocess.Popen[str]":
    """`dmabench WORDS` in a process that finds the package."""
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    environment["DMABENCH_COMMIT"] = COMMIT  # a resume must not depend on what somebody commits meanwhile
    command = [*(launcher or (sys.executable, "-P")), "-m", "dmabench", *map(str, words)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def stored(root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and manifest of the only run under root."""
    (path,) = root.iterdir()
    rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    return rows, json.loads((path / "manifest.json").read_text())
