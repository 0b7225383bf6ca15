"""kernels/measured.py, which `backend="auto"` chooses by, made of the rows of runs.

What counts: rows of dma at the level of its kernel, PASSED, on the `iid` delta, of shapes for which one run timed two
or more of the backends that "auto" chooses among. Their totals are compared. For a call that will be differentiated it
is the total of fwd+bwd, or where that was not measured, of fwd and bwd added. Of several runs of a cell the newest
counts.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal
from dmabench.kernels.choice import CANDIDATES, SUFFIXES, Cell, digest, source_path
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.workload.inputs import TORCH_DTYPE

CAPABILITIES = {"A100": (8, 0), "H100": (9, 0), "H200": (9, 0), "GH200": (9, 0), "B200": (10, 0)}
"""By a word of the device's name: manifests do not hold it."""
_SHAPE = ("batch", "heads", "kv_heads", "head_dim", "seqlen", "window")
Row = dict[str, Any]

_HEAD = '''"""What was measured, for choice.py. Made by `dmabench tune --from-rows results/reference`: not to be edited.

Each cell: device, compute capability, backward or not, dtype, batch, heads, key/value heads, head dimension, T, window;
milliseconds by backend; the run that timed them and its commit.
"""

from dmabench.kernels.choice import Cell

# fmt: off
CELLS: tuple[Cell, ...] = ('''


def cells_of(paths: Iterable[Path]) -> list[Cell]:
    """The cells of the runs of `dmabench kernels` among these folders, sorted."""
    newest: dict[tuple, tuple[str, Cell]] = {}
    for path in paths:
        manifest = read_manifest(path)
        if manifest.get("command") != "kernels":
            continue
        started = str(manifest.get("started") or path.name)
        for cell in cells_of_run(read_rows(path)[0], path.name, _commit(manifest)):
            key = _order(cell)
            if key not in newest or newest[key][0] < started:
                newest[key] = (started, cell)
    return [newest[key][1] for key in sorted(newest)]


def cells_of_run(rows: Iterable[Row], run: str, commit: str) -> list[Cell]:
    """The cells of one run."""
    totals: dict[tuple, dict[str, float]] = {}
    for row in rows:
        counts = row.get("function") == "dma" and row.get("level") == "kernel" and row.get("delta") == "iid"
        if counts and row.get("status") == "PASSED" and row["backend"] in CANDIDATES:
            key = (row["device"], row["dtype"], *(row[name] for name in _SHAPE))
            totals.setdefault((key, row["pass"]), {})[row["backend"]] = row["total_ms"]
    found = []
    for key in dict.fromkeys(key for key, _ in totals):
        forward, backward = totals.get((key, "fwd"), {}), totals.get((key, "bwd"), {})
        added = {name: forward[name] + backward[name] for name in forward if name in backward}
        for is_backward, times in ((False, forward), (True, totals.get((key, "fwd+bwd")) or added)):
            if len(times) > 1:
                ranked = tuple((name, round(ms, 4)) for name, ms in sorted(times.items(), key=lambda one: one[1]))
                device, dtype, *shape = key
                named: Row = dict(zip(_SHAPE, shape, strict=True))
                named |= {"total_ms": ranked, "run": run, "commit": commit}
                word = str(TORCH_DTYPE[dtype]).removeprefix("torch.")
                found.append(Cell(device, _capability(device), is_backward, word, **named))
    return found


def module_of(cells: Iterable[Cell], root: Path) -> str:
    """The text of kernels/measured.py.

    Args:
        root: the checkout, whose history tells what sources a commit had; without it they count as changed.
    """
    cells = list(cells)
    lines = [_HEAD.rstrip(), *map(_literal, cells), ")", "# fmt: on", ""]
    lines += ["SOURCES: dict[str, dict[str, str]] = {"]
    for commit in sorted({cell.commit for cell in cells}):
        timed = [name for name in CANDIDATES if any(name in dict(c.total_ms) for c in cells if c.commit == commit)]
        then = {name: found for name in timed if (found := sources_at(root, commit, name))}
        lines.append(f"    {_quoted(repr(commit))}: {_quoted(repr(then))},")
    lines += ["}", '"""By commit and backend, the digest of its sources then (choice.sources)."""', ""]
    return "\n".join(lines)


def sources_at(root: Path, commit: str, backend: str) -> str | None:
    """choice.sources of a backend as of a commit, from git; None where git, the history or the files are not there."""
    command = ["git", "-C", str(root), "ls-tree", "-r", commit, "--", f"kernels/{source_path(backend)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    blobs = {}
    for line in done.stdout.splitlines():
        about, name = line.split("\t")
        if name.endswith(SUFFIXES):
            blobs[name.removeprefix("kernels/")] = about.split()[2]
    return digest(blobs) if blobs else None


def _commit(manifest: Row) -> str:
    git = (manifest.get("environment") or {}).get("git") or {}
    if not git.get("sha"):
        raise Refusal(f"{manifest.get('run')} does not say which commit it timed: it cannot decide about kernels.")
    return git["sha"][:7] + ("-dirty" if git.get("dirty") else "")


def _capability(device: str) -> tuple[int, int] | None:
    return next((found for word, found in CAPABILITIES.items() if word in device.split()), None)


def _order(cell: Cell) -> tuple:
    sizes = tuple(getattr(cell, name) for name in _SHAPE)
    return (cell.device, cell.backward, cell.dtype, *sizes)


def _literal(cell: Cell) -> str:
    *shape, times, run, commit = (repr(getattr(cell, name)) for name in Cell.__dataclass_fields__)
    return _quoted(f"    Cell({', '.join(shape)},\n         {times}, {run}, {commit}),")


def _quoted(text: str) -> str:
    """As the formatter would have it."""
    return text.replace("'", '"')
