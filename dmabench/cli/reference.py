"""`dmabench reference`: every run that the README and the claims rest on, over as many calls as it takes."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from dmabench.cli.output import say, to_stdout
from dmabench.errors import Refusal
from dmabench.store import runs

HELP = """Run the reference runs, or the parts that are named, one after another.

With --seconds the part that is running then saves what it has, and the next call goes on from there. Each part has a
folder of its own under --results. Parts that are complete at this commit are left alone; those of another commit are
run anew, beside the old ones.

--quick has a list of its own: every command at the size that two CPU cores finish in minutes.

[bold]Examples[/bold]

dmabench reference --dry-run

dmabench reference --quick

dmabench reference forward backward --seconds 300

dmabench reference language downstream --text books/ --lm-eval lm_eval/ --results runs
"""
Commit = dict[str, Any]
"""As environment.git_state says it."""
COMMAND = (sys.executable, "-P", "-m", "dmabench")
FILE = Path(__file__).with_name("reference.yaml")
GRACE_S = 120.0
"""How long a part may take to save what it has."""
LEAST_S = 20.0
"""A part does not begin with less: libraries take that long to load on a GPU machine."""


@dataclass(frozen=True)
class Part:
    """One command of the list."""

    part: str
    command: str
    about: str


@cache
def parts(quick: bool = False) -> tuple[Part, ...]:
    """All of a list, in their order (reference.yaml)."""
    import yaml

    lists = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(Part(**one) for one in lists["quick" if quick else "h100"])


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("reference", help=HELP, rich_help_panel="Measure")(reference)


def reference(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help="In this order; all of them where none is named.", show_default=False),
    ] = None,
    seconds: Annotated[float | None, typer.Option(metavar="N", help="Stop after so long, ready to go on.")] = None,
    text: Annotated[str | None, typer.Option(metavar="DIR", help="Text for language models; else the hub's.")] = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", metavar="DIR", help="Local files of benchmarks; else the hub's.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The list for any machine, without a GPU too.")] = False,
    results: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the parts' folders.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the parts and how far each is; then stop.")] = False,
) -> None:
    """Runs them; ends with 0 where all are complete."""
    from dmabench.store.environment import git_state

    if seconds is not None and not seconds > 0:
        raise Refusal(f"--seconds {seconds:g}: write a number above 0, or leave it out to run without a limit")
    folders = {"text": text, "lm_eval": lm_eval}
    for option, folder in folders.items():
        if folder is not None and not Path(folder).exists():
            raise Refusal(f"--{option.replace('_', '-')} {folder} does not exist: name a folder, or leave it out")
    listed = parts(quick)
    chosen = [_find(name, listed) for name in names or ()] or list(listed)
    root = runs.results_root(results, create=not dry_run)
    until = time.monotonic() + seconds if seconds is not None else None
    commit = git_state()  # once, since it asks git, and every part is looked up by it
    told: list[tuple[Part, str, str]] = []
    codes: list[int] = []
    for part in chosen:
        try:
            if dry_run:
                code, state = 0, _state(root, part, commit)
            else:
                code, state = _run(part, listed, root, commit, folders, until)
        except KeyboardInterrupt:
            code, state = 130, "interrupted"
        codes.append(code)
        told.append((part, state, _rows(root, part, commit)))
        if state == "interrupted":
            break
    _print(told, dry_run)
    if not dry_run:
        raise typer.Exit(130 if 130 in codes else max(codes, default=0))


def _find(name: str, listed: Sequence[Part]) -> Part:
    known = {one.part: one for one in listed}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`dmabench reference --dry-run` lists them."
        raise Refusal(f"there is no part {name!r}: {hint}")
    return known[name]


def _latest(root: Path, part: Part, commit: Commit) -> tuple[Path, str] | None:
    """The last run of a part at this commit, and its status."""
    for path in reversed(runs.run_paths(root / part.part)):
        manifest = runs.read_manifest(path)
        if ((manifest.get("environment") or {}).get("git") or {}) == commit:
            return path, str(manifest.get("status"))
    return None


def _state(root: Path, part: Part, commit: Commit) -> str:
    found = _latest(root, part, commit)
    return "to do" if found is None else "complete" if found[1] == "finished" else f"begun ({found[1]})"


def _rows(root: Path, part: Part, commit: Commit) -> str:
    found = _latest(root, part, commit)
    return str(len(runs.read_rows(found[0])[0])) if found else ""


def words_of(part: Part, models: Callable[[], list[Path]], folders: dict[str, str | None]) -> list[str]:
    """The command's words with the folders put in. A folder that is not given takes its option with it; Refusal where
    models are asked for and there are none.

    Args:
        models: asked only by a command that names them, since they are looked for in every file of a run.
    """
    words: list[str] = []
    for word in shlex.split(part.command):
        name = word[1:-1] if word.startswith("{") and word.endswith("}") else None
        if name == "models":
            found = models()
            if not found:
                raise Refusal(f"{part.part} needs models that an earlier part kept: run `language` first")
            words += [piece for model in found for piece in ("--model", str(model))]
        elif name is None:
            words.append(word)
        elif folders[name] is None:
            words.pop()
        else:
            words.append(str(folders[name]))
    return words


def _models(listed: Sequence[Part], root: Path, commit: Commit) -> list[Path]:
    """Checkpoints in the runs of those parts that keep them."""
    kept = [_latest(root, part, commit) for part in listed if "--keep-models" in part.command]
    configs = [path for run in kept if run is not None for path in run[0].rglob("config.json")]
    return sorted(path.parent for path in configs if any(path.parent.glob("*.safetensors")))


def _run(
    part: Part,
    listed: Sequence[Part],
    root: Path,
    commit: Commit,
    folders: dict[str, str | None],
    until: float | None,
) -> tuple[int, str]:
    """(exit code, what became of it)."""
    found = _latest(root, part, commit)
    if found is not None and found[1] == "finished":
        return 0, "complete"
    if until is not None and until - time.monotonic() < LEAST_S:
        return 130, "no time left"
    try:
        words = words_of(part, lambda: _models(listed, root, commit), folders)
    except Refusal as refusal:
        say(str(refusal))
        return 3, "not possible"
    words += ["--results", str(root / part.part), *(["--resume", str(found[0])] if found else [])]
    say(f"{part.part}: dmabench {shlex.join(words)}", "bold", wrap=False)
    code, in_time = _process(words, until)
    if not in_time:
        return 130, "out of time"
    return code, {0: "complete", 1: "complete, with failures", 130: "interrupted"}.get(code, f"exit code {code}")


def _process(words: list[str], until: float | None) -> tuple[int, bool]:
    """Runs the command, interrupted at `until` as Ctrl-C would; its exit code and whether it ended by itself."""
    # A group of its own: the signal must reach its workers, as that of a terminal does, and not this process.
    process = subprocess.Popen([*COMMAND, *words], start_new_session=True, preexec_fn=_listen)
    try:
        return process.wait(None if until is None else max(0.0, until - time.monotonic())), True
    except subprocess.TimeoutExpired:
        return _stop(process), False
    except KeyboardInterrupt:
        _stop(process)
        raise


def _listen() -> None:
    """A shell makes what it starts with & deaf to the signal, and a process hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: "subprocess.Popen[Any]") -> int:
    with suppress(ProcessLookupError):  # it may have ended by itself while this process was told to stop
        os.killpg(process.pid, signal.SIGINT)
    try:
        return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _print(told: list[tuple[Part, str, str]], dry_run: bool) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("part", "state", "rows", *(("command",) if dry_run else ())):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for part, state, rows in told:
        table.add_row(part.part, state, rows, *((f"{part.command}\n[dim]{part.about}[/dim]",) if dry_run else ()))
    to_stdout(lambda console: console.print(table))
