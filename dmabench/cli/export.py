"""`dmabench export`: a run's rows for other programs, or its tables for a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmabench.cli.completion import runs_here
from dmabench.errors import Refusal
from dmabench.store import runs

HELP = """Write the rows of runs as CSV or Parquet, or their tables as Markdown.

CSV and Parquet hold every row and every field, with the run, commit and device that each row comes from. Files lie
beside the run's rows unless --out says where. In Python, `dmabench.load_runs(DIR)` gives the same as a DataFrame.

[bold]Examples[/bold]

dmabench export latest

dmabench export latest --format csv,parquet,md

dmabench export latest --format md --out -
"""
STDOUT = "-"

if TYPE_CHECKING:
    from rich.console import Console


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("export", help=HELP, rich_help_panel="Look")(export)


def export(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs by name, by folder, or `latest`.", autocompletion=runs_here),
    ],
    form: Annotated[
        str | None,
        typer.Option("--format", help="csv, parquet, md, or several; by default what --out ends with, else csv."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The file; of several formats all but the ending. - is standard output."),
    ] = None,
    results: Annotated[str | None, typer.Option(metavar="DIR", help="The folder that holds the runs.")] = None,
) -> None:
    """Writes the files and prints their paths."""
    from dmabench.report.export import FORMATS, check, csv_text, write

    formats = _formats(form, out, FORMATS)
    root = runs.results_root(results, create=False)
    paths = list(dict.fromkeys(runs.find_run(root, name) for name in names))
    check(formats)
    for path in paths:
        runs.read_rows(path)  # a run that is named and cannot be read is no run to leave out
    if len(paths) > 1 and out is None:
        raise Refusal(f"{len(paths)} runs go into one file: name it with --out FILE.")
    if out == STDOUT:
        from dmabench.report.markdown import markdown
        from dmabench.store.run_frame import frame_of

        if len(formats) > 1 or "parquet" in formats:
            raise Refusal(
                f"--out - writes text of one format to standard output, not {','.join(formats)}: take csv or md."
            )
        frame, told = frame_of(paths, root)
        _print(csv_text(frame) if formats == ["csv"] else markdown(paths))
    else:
        files = {one: _file(out, one, len(formats), paths[0]) for one in formats}
        told = write(paths, root, files)
        _print("".join(f"{file}\n" for file in files.values()))
    for sentence in told:
        typer.echo(sentence, err=True)


def _formats(form: str | None, out: str | None, known: tuple[str, ...]) -> list[str]:
    if form is None:
        ending = Path(out or "").suffix.removeprefix(".")
        return [ending if ending in known else "csv"]
    words = list(dict.fromkeys(word.strip() for word in form.split(",")))
    unknown = [word for word in words if word not in known]
    if unknown:
        raise Refusal(f"--format {unknown[0]!r} is unknown; choose from {', '.join(known)}")
    return words


def _file(out: str | None, form: str, formats: int, path: Path) -> Path:
    if out is None:
        return path / f"rows.{form}"
    return Path(f"{out}.{form}" if formats > 1 else out).expanduser()


def _print(text: str) -> None:
    from dmabench.cli.output import to_stdout

    def write(console: "Console") -> None:
        console.file.write(text)

    to_stdout(write)
