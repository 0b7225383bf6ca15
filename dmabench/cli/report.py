"""`dmabench report`: one static HTML page of stored runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dmabench.cli.completion import runs_here
from dmabench.store import runs

HELP = """Write one static HTML page: tables, charts, doubts and claims of stored runs.

The page needs no network and no scripts. Its path goes to standard output.

[bold]Examples[/bold]

dmabench report

dmabench report latest --out latest.html

dmabench report --results results/reference --json
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("report", help=HELP, rich_help_panel="Look")(report)


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Runs by name, by folder, or `latest`; all by default.", autocompletion=runs_here
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; report.html beside the runs by default.")
    ] = None,
    results: Annotated[str | None, typer.Option(metavar="DIR", help="The folder that holds the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print path, runs and verdicts as JSON.")] = False,
) -> None:
    """Writes the page and prints its path."""
    root = runs.results_root(results, create=False)
    paths = [runs.find_run(root, name) for name in names] if names else runs.run_paths(root)
    if not paths:
        typer.echo(f"No run under {root} yet: the page says how to make one.", err=True)

    from dmabench.report.page import write_report

    written = write_report(paths, out or root / "report.html")
    if as_json:
        typer.echo(json.dumps(_as_json(paths, written), indent=2))
    else:
        typer.echo(str(written))


def _as_json(paths: list[Path], written: Path) -> dict[str, object]:
    from dmabench.claims.verdicts import load_claims, verdicts
    from dmabench.errors import Refusal

    rows, problems = [], []
    for path in paths:
        try:
            found, damaged = runs.read_rows(path)
        except Refusal as refusal:
            problems.append(str(refusal))
            continue
        rows += found
        problems += damaged
    judged = [
        {"claim": one.claim.id, "verdict": one.verdict, "run": one.run, "device": one.device, "detail": one.detail}
        for one in verdicts(load_claims(), rows)
    ]
    return {"report": str(written), "runs": [path.name for path in paths], "problems": problems, "verdicts": judged}
