"""The command line: `dmabench COMMAND`. One file a command; this one only puts them together.

Exit codes: 0 all well, 1 a measured cell failed or regressed, 2 usage, 3 nothing could be measured, 130 interrupted.
"""

import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dmabench import __version__
from dmabench.cli import (
    compare,
    config,
    doctor,
    env,
    eval,
    export,
    kernels,
    listing,
    mask,
    perplexity,
    reference,
    report,
    reproduce,
    tasks,
    tune,
)
from dmabench.errors import Refusal
from dmabench.trials.ranks import here


class Commands(TyperGroup):
    """A task's command gets its options when it is called, from a module that imports torch; until then it is a name
    and a line of help. Options of any command may stand in a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, config.in_front(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        command = (tasks.command(name) if name else None) or command
        file = ctx.params.get("config_file")
        if file is not None and name and not ctx.resilient_parsing:
            rest = [*config.words_of(file, name, command, rest, self.commands), *rest]
            # What a run's manifest says it was started with.
            sys.argv[1:] = [*(word for word in sys.argv[1:] if word == "--debug"), name, *rest]
        return name, command, rest


app = typer.Typer(
    cls=Commands,
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
    config_file: Annotated[
        str | None,
        typer.Option(
            config.FLAG, metavar="FILE", help="Options of the command, in TOML: a section a command. Typed ones win."
        ),
    ] = None,
) -> None:
    """Options that stand before the command."""


for command in (
    kernels,
    tasks,
    perplexity,
    eval,
    tune,
    reference,
    report,
    mask,
    reproduce,
    compare,
    export,
    listing,
    doctor,
    env,
):
    command.add_to(app)


def run() -> None:
    """Entry point of the console script: a Refusal becomes one sentence on stderr and exit code 2."""
    words = sys.argv[1:]
    # Accepted after the command too, where people add it when something went wrong.
    debug = "--debug" in words
    pressed = _listen_for_ctrl_c()
    try:
        app([word for word in words if word != "--debug"])
    except Refusal as refusal:
        if debug:
            traceback.print_exc()
        here().wait_for_first()  # where all processes refuse, the first says it; one that does so alone says it itself
        _say(str(refusal))
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except Exception as error:
        if pressed:  # what was being imported may turn the interruption into an error of its own
            _say("interrupted")
            sys.exit(130)
        if debug:
            raise
        _say(f"{type(error).__name__}: {error}. This is a bug; --debug shows where it happened.")
        sys.exit(1)


def _listen_for_ctrl_c() -> list[int]:
    """Ctrl-C raises KeyboardInterrupt as ever, and leaves its number in this list."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, press)
    return pressed


def _say(text: str) -> None:
    plain = not sys.stderr.isatty() or bool(os.environ.get("NO_COLOR"))
    typer.echo(f"dmabench: {text}" if plain else typer.style(f"dmabench: {text}", fg="red"), err=True)
