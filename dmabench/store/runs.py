"""The results store: one run is one folder, one measured thing is one line.

    <root>/<UTC yyyymmddThhmmssZ>-<command>-<sha7 or nogit>/
        manifest.json   what was asked, on what machine, with which versions
        rows.jsonl      one flat JSON object a line
        samples.jsonl   raw timings, one object a row

Every line is on disk before the next cell starts, so a crash or Ctrl-C costs at most the line being written.
"""

import difflib
import json
import os
import shlex
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal
from dmabench.store import environment as environment_module
from dmabench.store.run_folder import (
    MANIFEST,
    ROWS,
    SAMPLES,
    SCHEMA,
    append_line,
    plain,
    plain_argument,
    read_manifest,
    read_rows,
    write_manifest,
)

__all__ = ["Run", "find_run", "read_manifest", "read_rows", "results_root", "run_paths"]

STATUSES = ("running", "finished", "interrupted")
REFERENCE = "reference"


def results_root(option: str | None, create: bool = True) -> Path:
    """The folder that holds the runs: the option, else DMABENCH_RESULTS, else ./results.

    Makes it and tries it out, unless create is False (for commands that only read). Raises Refusal when the folder
    cannot be made or written to.
    """
    root = Path(option or os.environ.get("DMABENCH_RESULTS") or "results").expanduser()
    if create:
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Trying is the only sure test: permissions say nothing about read-only mounts, nor to root.
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            why = "it is a file" if root.is_file() else error.strerror or error
            raise Refusal(
                f"cannot write results to {root}: {why}. Name another folder with --results DIR or DMABENCH_RESULTS."
            ) from error
    elif root.is_file():
        raise Refusal(f"{root} is a file and not a folder of runs: name the folder with --results DIR.")
    return root


class Run:
    """One run's folder. Make one with Run.start or Run.resume."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def name(self) -> str:
        """The folder's name, which is the run's id in every row."""
        return self.path.name

    @classmethod
    def start(
        cls, root: Path, command: str, argv: list[str], settings: dict[str, Any], environment: dict[str, Any]
    ) -> "Run":
        """A new folder under root with its manifest. Absolute paths in argv and settings are cut to their last part.

        Raises Refusal when the folder cannot be made.
        """
        now = datetime.now(UTC)
        sha = (environment.get("git") or {}).get("sha")
        try:
            path = _new_folder(root, f"{now:%Y%m%dT%H%M%SZ}-{command}-{sha[:7] if sha else 'nogit'}")
        except OSError as error:
            raise Refusal(
                f"cannot make a run folder in {root}: {error.strerror or error}. Name another with --results DIR."
            ) from error
        settings = plain(settings)
        manifest = {
            "schema": SCHEMA,
            "run": path.name,
            "command": command,
            "argv": [plain_argument(word) for word in argv],
            "settings": settings,
            "environment": plain(environment),
            "gpu_state": {"before": environment_module.gpu_state(), "after": None},
            "seeds": _seeds(settings),
            "started": now.isoformat(),
            "finished": None,
            "status": "running",
        }
        run = cls(path, manifest)
        write_manifest(path, manifest)
        for name in (ROWS, SAMPLES):
            (path / name).touch()
        return run

    @classmethod
    def resume(cls, path: Path, command: str, settings: dict[str, Any], environment: dict[str, Any]) -> "Run":
        """Opens a run to append to it. Raises Refusal, naming every difference, unless it is the same measurement:
        same command and settings, commit, device and library versions."""
        manifest = read_manifest(path)
        old, new = (
            _identity(manifest),
            _identity({"command": command, "settings": settings, "environment": environment}),
        )
        differences = [
            f"{key}: {_show(old.get(key))} -> {_show(new.get(key))}"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]
        if differences:
            raise Refusal(
                f"cannot resume {path.name}, its rows would not be comparable with new ones:\n  "
                + "\n  ".join(differences)
                + f"\nIt was started as: dmabench {shlex.join(manifest.get('argv') or [])}"
                + "\nUndo the difference, or start a new run without --resume."
            )
        run = cls(path, manifest)
        read_rows(path)  # refuses rows of a newer schema before anything is added to them
        manifest["status"] = "running"
        write_manifest(path, manifest)
        return run

    def append(self, row: dict[str, Any], samples: dict[str, Any] | None = None) -> dict[str, Any]:
        """Stores one row (and its raw samples) and returns it as stored. It is on disk when this returns.

        Raises Refusal when the disk does not take it.
        """
        first = {
            "schema": SCHEMA,
            "run": self.name,
            "cell": row.get("cell"),
            "seed": row.get("seed"),
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        stored = plain({**first, **{key: value for key, value in row.items() if key not in first}})
        try:
            # Samples first: a row without samples would look whole, samples without a row are merely unused.
            if samples is not None:
                append_line(self.path / SAMPLES, plain({**first, **samples}))
            append_line(self.path / ROWS, stored)
        except OSError as error:
            raise Refusal(
                f"cannot store a row in {self.name}: {error.strerror or error}. "
                f"Free some space, then go on with --resume {self.name}."
            ) from error
        return stored

    def rows(self) -> list[dict[str, Any]]:
        """The rows stored so far; damaged lines and parts of cells are left out (see read_rows)."""
        return read_rows(self.path)[0]

    def done(self) -> set[str]:
        """The `cell` ids that have a row."""
        return {row["cell"] for row in self.rows() if row.get("cell") is not None}

    def finish(self, status: str = "finished") -> None:
        """Closes the manifest with a status ("finished" or "interrupted") and the state of the GPUs."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {STATUSES}")
        self.manifest["status"] = status
        self.manifest["finished"] = datetime.now(UTC).isoformat()
        before = (self.manifest.get("gpu_state") or {}).get("before")
        self.manifest["gpu_state"] = {"before": before, "after": environment_module.gpu_state()}
        write_manifest(self.path, self.manifest)


def provenance(manifest: dict[str, Any]) -> dict[str, str]:
    """{"commit": sha7 with "-dirty" behind it, "versions": "torch 2.11.0, triton 3.6.0"} of a run."""
    environment = manifest.get("environment") or {}
    git = environment.get("git") or {}
    sha = git.get("sha")
    known = environment.get("versions") or {}
    return {
        "commit": (sha[:7] + ("-dirty" if git.get("dirty") else "")) if sha else "no commit",
        "versions": ", ".join(f"{name} {known[name]}" for name in ("torch", "triton") if known.get(name)),
    }


def run_paths(root: Path) -> list[Path]:
    """The run folders anywhere under root, or root itself, oldest first. A folder counts when it has a manifest; those
    in a folder named `reference` below root do not, so that nobody's own runs mix with the ones of the repository."""
    found = []
    for folder, below, files in os.walk(root):
        if MANIFEST in files:
            found.append(Path(folder))
            below.clear()  # a run holds checkpoints, but no runs
        else:
            below[:] = [name for name in below if name != REFERENCE and not name.startswith(".")]
    return sorted(found, key=lambda path: (_started(path), path.name))


def find_run(root: Path, name: str, first: str = "dmabench kernels --quick") -> Path:
    """The folder of a run named by its path, its name anywhere under root, or `latest`.

    Args:
        first: the command that makes a run, which a Refusal names where root has none.

    Raises Refusal for an unknown name, offering the nearest.
    """
    known = run_paths(root)
    if name == "latest":
        if known:
            return known[-1]
        raise Refusal(f"there is no run under {root} yet: make one with `{first}`.")
    named = [path for path in known if path.name == name]
    for path in (root / name, *named[-1:], Path(name).expanduser()):
        if (path / MANIFEST).is_file():
            return path
    if not known:
        raise Refusal(f"there is no run {name!r} under {root}, nor any other yet: make one with `{first}`.")
    near = difflib.get_close_matches(name, [path.name for path in known], n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}?" if near else "`dmabench list runs` shows the runs."
    raise Refusal(f"there is no run {name!r} under {root}: {hint}")


def _new_folder(root: Path, name: str) -> Path:
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.exists() or number > 10_000:
                raise
            number += 1


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for two parts of a run to be comparable, one flat key each."""
    environment = plain(manifest.get("environment") or {})
    git = environment.get("git") or {}
    identity = {
        "command": manifest.get("command"),
        "commit": git.get("sha"),
        "changed files": git.get("dirty"),
        "device": environment_module.device_name(environment),
        "visible GPUs": environment.get("visible_gpus"),
    }
    identity |= {f"version of {name}": version for name, version in (environment.get("versions") or {}).items()}
    settings = json.loads(json.dumps(plain(manifest.get("settings") or {})))
    blocks = settings.pop("blocks", None) or []
    if blocks:
        settings.pop("seeds", None)  # those of the blocks
    for number, block in enumerate(blocks, start=1):
        which = f" of block {number}" if len(blocks) > 1 else ""
        identity |= {f"setting {name}{which}": _as_given(value) for name, value in block.items()}
    return identity | {f"setting {name}": value for name, value in settings.items()}


def _as_given(value: Any) -> Any:
    """A number as a word: a default and the same value on the command line are no difference."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _show(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _seeds(settings: dict[str, Any]) -> list[Any]:
    seeds = settings.get("seeds", settings.get("seed"))
    return seeds if isinstance(seeds, list) else [] if seeds is None else [seeds]


def _started(path: Path) -> str:
    try:
        return str(read_manifest(path).get("started") or "")
    except Refusal:
        return path.name
