"""`dmabench report`: one static HTML page of stored runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dmabench.cli.completion import runs_here
from dmabench.store import runs

HELP = """Write one static HTML page: tables, charts, doubts and claims of stored runs.

The page needs no network and no scripts. Its path goes to standard output. Each chart and table is a file too, in a
folder beside it: PNG, SVG, CSV (the rows behind it), Markdown.

[bold]Examples[/bold]

dmabench report

dmabench report latest --out latest.html

dmabench report --results results/reference --json

dmabench report --readme README.md
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
    readme: Annotated[
        bool,
        typer.Option(
            "--readme",
            help="Write no page, but the tables and charts between the markers of a README: in place of runs, its file "
            "(README.md by default). The markers name the runs.",
        ),
    ] = False,
) -> None:
    """Writes the page and prints its path."""
    if readme:
        _fill_readme(names or [], out, results, as_json)
        return
    root = runs.results_root(results, create=False)
    paths = [runs.find_run(root, name) for name in names] if names else runs.run_paths(root)
    if not paths:
        typer.echo(f"No run under {root} yet: the page says how to make one.", err=True)

    from dmabench.report.page import write_report
    from dmabench.store.environment import cpu_cores

    written = write_report(paths, out or root / "report.html", processes=cpu_cores())
    if as_json:
        typer.echo(json.dumps(_as_json(paths, written), indent=2))
    else:
        typer.echo(str(written))


def _fill_readme(names: list[str], out: Path | None, results: str | None, as_json: bool) -> None:
    from dmabench.errors import Refusal
    from dmabench.report.readme import write_readme

    if len(names) > 1:
        raise Refusal(f"--readme fills one README, not {len(names)}: its markers name the runs.")
    if out is not None or results is not None:
        given = "--out" if out is not None else "--results"
        raise Refusal(f"{given} does not go with --readme: its markers name runs and charts. Leave one of the two out.")
    path = Path(names[0] if names else "README.md")
    written = write_readme(path)
    if as_json:
        told = {"readme": str(path), "blocks": written.blocks, "changed": written.changed, "loose": written.loose}
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(str(path))
    changed = ", ".join(written.changed) or "nothing"
    typer.echo(f"{len(written.blocks)} blocks and charts, changed: {changed}.", err=True)
    for loose in written.loose:
        typer.echo(f"outside of the blocks, {loose}: move it into one, or write a setting as `code`.", err=True)


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
