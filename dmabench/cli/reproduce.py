"""`dmabench reproduce CLAIM`: the command that measures a claim, and with --run its verdict afterwards."""

import difflib
import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmabench.cli.completion import claims
from dmabench.cli.output import say
from dmabench.errors import Refusal
from dmabench.store import runs

if TYPE_CHECKING:
    from dmabench.claims.verdicts import Claim

HELP = """Print the command that measures a claim; with --run, run it and judge the claim by what it found.

The command goes to standard output, what the claim says and what stored runs say of it to standard error.

Further options are the command's own: --dry-run tells what it takes, --resume latest goes on with it.

[bold]Examples[/bold]

dmabench reproduce kernel-cuda-10x-most-dense

dmabench reproduce mqar-ahead-8192 --run --dry-run

dmabench reproduce kernel-cuda-10x-most-dense --json
"""
NOTHING = 3
"""Exit code for a claim that nothing measured here can judge."""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("reproduce", help=HELP, rich_help_panel="Look", context_settings=passed_on)(reproduce)


def reproduce(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="CLAIM", help="Its id (dmabench list claims).", autocompletion=claims)],
    run: Annotated[bool, typer.Option("--run", help="Run the command, then judge the claim.")] = False,
    results: Annotated[str | None, typer.Option(metavar="DIR", help="The folder that holds the runs.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the claim and its verdicts as JSON; not with --run.")
    ] = False,
) -> None:
    """Prints or runs the command."""
    claim = _find(name)
    if as_json and run:
        raise Refusal("--json tells of a claim, and --run measures it: leave one of them out")
    root = runs.results_root(results, create=False)
    words = [*shlex.split(claim.command), *ctx.args, *(["--results", results] if results else [])]
    if as_json:
        judged = [_as_json(one) for one in _verdicts(claim, runs.run_paths(root))]
        typer.echo(json.dumps({**asdict(claim), "command": shlex.join(words), "verdicts": judged}, indent=2))
        return
    if claim.not_testable:
        say(f"{claim.id} cannot be measured here: {claim.not_testable}")
        raise typer.Exit(NOTHING)
    _tell(claim)
    if not run:
        for one in _verdicts(claim, runs.run_paths(root)):
            say(_told(one))
        typer.echo(shlex.join(words))
        return
    raise typer.Exit(_run(claim, words, root))


def _find(name: str) -> "Claim":
    from dmabench.claims.verdicts import load_claims

    known = {claim.id: claim for claim in load_claims()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`dmabench list claims` shows them."
        raise Refusal(f"there is no claim {name!r}: {hint}")
    return known[name]


def _tell(claim: "Claim") -> None:
    say(f"{claim.statement} ({claim.source})", "bold")
    told = {"measured": claim.metric, "valid": claim.validity, "verdict": claim.verdict, "note": claim.note}
    for name, text in told.items():
        if text:
            say(f"{name}: {' '.join(text.split())}")
    if claim.minimum_seeds > 1:
        say(f"seeds: at least {claim.minimum_seeds}")


def _run(claim: "Claim", words: list[str], root: Path) -> int:
    """The command in a process of its own, whose output is this one's; its exit code. Then the verdict."""
    before = {path: _rows_file(path) for path in runs.run_paths(root)}
    say(shlex.join(words), wrap=False)
    try:
        code = subprocess.run([sys.executable, "-P", "-m", "dmabench", *words[1:]], check=False).returncode
    except KeyboardInterrupt:  # the command had it too, and has stored what it had
        code = 130
    # A resumed run was there before.
    made = [path for path in runs.run_paths(root) if before.get(path) != _rows_file(path)]
    for one in _verdicts(claim, made) if made else ():
        typer.echo(_told(one))
    return code


def _rows_file(path: Path) -> int:
    try:
        return (path / "rows.jsonl").stat().st_size
    except OSError:
        return 0


def _verdicts(claim: "Claim", paths: list[Path]) -> list[Any]:
    """What each of the runs says; one verdict, NO_ROWS, where none has rows for the claim."""
    from dmabench.claims.verdicts import verdicts

    rows = []
    for path in paths:
        try:
            rows += [{**row, "run": path.name} for row in runs.read_rows(path)[0]]
        except Refusal as refusal:
            say(f"left out: {refusal}")
    return verdicts([claim], rows)


def _told(one: Any) -> str:
    where = f" in {one.run} ({one.device})" if one.run else ""
    return f"{one.claim.id}: {one.verdict}{where}: {one.detail}"


def _as_json(one: Any) -> dict[str, Any]:
    return {"verdict": one.verdict, "run": one.run, "device": one.device, "detail": one.detail}
