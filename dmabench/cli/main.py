"""The command line: `dmabench COMMAND`. One file a command; this one only puts them together.

Exit codes: 0 all well, 1 a measured cell failed, 2 usage, 3 nothing could be measured, 130 interrupted.
"""

import sys
from typing import Annotated

import typer

from dmabench import __version__
from dmabench.cli import doctor, kernels, listing, report
from dmabench.errors import Refusal

app = typer.Typer(
    name="dmabench",
    help="Is trainable sparse attention faster, and is it any good? Measure it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dmabench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    """Options that stand before the command."""


for command in (kernels, report, listing, doctor):
    command.add_to(app)


def run() -> None:
    """Entry point of the console script: a Refusal becomes one sentence on stderr and exit code 2."""
    try:
        app()
    except Refusal as refusal:
        if "--debug" in sys.argv:
            raise
        typer.secho(f"dmabench: {refusal}", fg="red", err=True)
        sys.exit(2)
