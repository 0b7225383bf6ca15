"""`dmabench compare`: two runs of `dmabench kernels`, cell by cell."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dmabench.cli.completion import runs_here
from dmabench.cli.output import WIDTH, say, to_stdout
from dmabench.errors import Refusal
from dmabench.store import runs

HELP = """Compare two runs of [bold]kernels[/bold] cell by cell: is B the SAME as A, FASTER, SLOWER, or UNSURE?

Judged by the interval of the ratio of their medians. Only cells that are correct in both have one.

A cell that was correct and is not any more is WORSE.

[bold]Examples[/bold]

dmabench compare 20261124T233533Z-kernels-d955ade latest

dmabench compare A B --fail-on 5%

dmabench compare A B --time total --json
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("compare", help=HELP, rich_help_panel="Look")(compare)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The run before: its name, its folder, or `latest`.", autocompletion=runs_here
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The run after.", autocompletion=runs_here)],
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Exit 1 where B is slower by more, surely, or a status got worse: 5%."),
    ] = None,
    time: Annotated[
        str,
        typer.Option(help="gpu (device time; on a CPU wall), total (host included), wall, kernel, plan, importance."),
    ] = "gpu",
    results: Annotated[str | None, typer.Option(metavar="DIR", help="The folder that holds the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prints the table and its sums on stdout, and what to doubt on stderr."""
    from dmabench.compare import verdicts as comparing
    from dmabench.compare.notes import differences, doubts

    share = None if fail_on is None else share_of(fail_on)
    if time not in comparing.TIMES:
        raise Refusal(f"--time {time!r} is unknown; choose from {', '.join(comparing.TIMES)}")
    root = runs.results_root(results, create=False)
    paths = [runs.find_run(root, name) for name in (a, b)]
    if paths[0].resolve() == paths[1].resolve():
        raise Refusal(f"A and B are the same run, {paths[0].name}: name two.")
    manifests = [_manifest(path) for path in paths]
    (before, damaged_before), (after, damaged_after) = (_read(path) for path in paths)
    compared = comparing.compare(before, after, time, alike=not differences(manifests[0], manifests[1]))
    if not compared.cells:
        raise Refusal(_nothing_common(compared, paths))
    notes = [*damaged_before, *damaged_after, *doubts(manifests[0], manifests[1], compared, time)]
    regressed = [] if share is None else [cell for cell in compared.cells if cell.regressed(share)]
    if as_json:
        told = _as_json(paths, manifests, compared, time, share, notes)
        to_stdout(lambda console: print(json.dumps(told, indent=2, ensure_ascii=False), file=console.file))
    else:
        _print(paths, manifests, compared, time, notes)
    if regressed:
        from dmabench.compare.table import regressions

        for sentence in regressions(regressed):
            say(f"regression ({fail_on}): {sentence}", "bold red")
        sys.exit(1)


def share_of(text: str) -> float:
    """A share written as 5% or 0.05. Raises Refusal for anything else, 5 among it, which may mean 5% or not."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if math.isfinite(share) and 0 <= share and (percent or share < 1):
        return share
    hint = f": did you mean {number}%?" if not percent and math.isfinite(share) and share >= 1 else ": write 5% or 0.05"
    raise Refusal(f"--fail-on {text!r} is no share{hint}")


def _manifest(path: Path) -> dict[str, Any]:
    manifest = runs.read_manifest(path)
    if manifest.get("command") != "kernels":
        raise Refusal(
            f"{path.name} is a run of `dmabench {manifest.get('command')}`: compare takes two of `dmabench kernels`, "
            "whose cells have times."
        )
    return manifest


def _read(path: Path) -> tuple[Any, list[str]]:
    from dmabench.compare.verdicts import Measured
    from dmabench.store.run_folder import read_samples

    rows, problems = runs.read_rows(path)
    if not rows:
        raise Refusal(f"{path.name} has no rows: nothing was measured in it.")
    return Measured(rows, {one["cell"]: one for one in read_samples(path) if "cell" in one}), problems


def _nothing_common(compared: Any, paths: list[Path]) -> str:
    from dmabench.compare.verdicts import KEY

    apart = []
    for field in KEY:
        of_a, of_b = ({str(row.get(field)) for row in rows} for rows in (compared.only_a, compared.only_b))
        if not of_a & of_b:
            apart.append(f"{field} is {', '.join(sorted(of_a))} in A and {', '.join(sorted(of_b))} in B")
    why = f" ({'; '.join(apart)})" if apart else ""
    return f"{paths[0].name} and {paths[1].name} have no cell in common{why}: measure the same cells in both."


def _print(paths: list[Path], manifests: list[dict[str, Any]], compared: Any, time: str, notes: list[str]) -> None:
    from rich.text import Text

    from dmabench.compare.table import colour, layout, sums
    from dmabench.compare.verdicts import SMALLEST
    from dmabench.tables.kernels import drawn

    def write(console: Any) -> None:
        for name, path, manifest in zip("AB", paths, manifests, strict=True):
            console.print(Text(f"{name}: {_about(path, manifest)}"), soft_wrap=True)
        shown = layout(compared, time, width=min(WIDTH, console.width))
        if shown.cells:
            console.print(drawn(shown, colour))
        for sentence in sums(compared):
            console.print(Text(sentence))

    to_stdout(write)
    say(f"medians; B/A above 1 is slower; interval 95%; FASTER and SLOWER from {SMALLEST:.0%} on", "dim")
    for note in notes:
        say(f"note: {note}", "yellow")


def _about(path: Path, manifest: dict[str, Any]) -> str:
    from dmabench.store.environment import device_name

    told = runs.provenance(manifest)
    device = device_name(manifest.get("environment") or {}, (manifest.get("settings") or {}).get("device"))
    return ", ".join(part for part in (path.name, device, told["commit"], told["versions"]) if part)


def _as_json(
    paths: list[Path],
    manifests: list[dict[str, Any]],
    compared: Any,
    time: str,
    share: float | None,
    notes: list[str],
) -> dict[str, Any]:
    from dmabench.compare.table import cell_as_json

    sides = {
        side: {"run": path.name, "about": _about(path, manifest)}
        for side, path, manifest in zip("ab", paths, manifests, strict=True)
    }
    return {
        **sides,
        "time": time,
        "fail_on": share,
        "counts": compared.counts(),
        "geometric_means": compared.geometric_means(),
        "drift": compared.drift,
        "notes": notes,
        "only_a": [row["cell"] for row in compared.only_a],
        "only_b": [row["cell"] for row in compared.only_b],
        "cells": [cell_as_json(cell, share) for cell in compared.cells],
    }
