"""`dmabench list`: what there is to run and what has been run."""

import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any

import typer

from dmabench.cli.list_runs import print_runs
from dmabench.errors import Refusal
from dmabench.store import runs
from dmabench.store.run_list import list_runs

HELP = """List what there is: backends, models, runs, tasks, claims or presets.

[bold]Examples[/bold]

dmabench list backends

dmabench list models

dmabench list runs --results results/reference

dmabench list claims --json
"""


class What(StrEnum):
    """What can be listed."""

    backends = "backends"
    models = "models"
    runs = "runs"
    tasks = "tasks"
    claims = "claims"
    presets = "presets"


# The table leaves out what would make it too wide for a terminal; --json has it all.
LEFT_OUT = {
    What.claims: ("source",),
    What.models: ("window",),
    What.tasks: ("axes",),
}


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("list", help=HELP, rich_help_panel="Look")(list_things)


def list_things(
    what: Annotated[What, typer.Argument(help="What to list.")],
    results: Annotated[str | None, typer.Option(metavar="DIR", help="The folder that holds the runs.")] = None,
    device: Annotated[str | None, typer.Option(help="Backends: cpu or cuda; what is here by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Prints the list on standard output; a sentence on standard error where there is nothing."""
    makers: dict[What, Callable[[], tuple[list[dict[str, Any]], str]]] = {
        What.backends: lambda: (backends(device), "No backend is registered."),
        What.models: lambda: (_models(), "There is no model."),
        What.runs: lambda: _runs(results),
        What.tasks: lambda: (_tasks(), "There is no task."),
        What.claims: lambda: (_claims(), "No claim is registered."),
        What.presets: lambda: (_presets(), "There is no preset."),
    }
    found, empty = makers[what]()
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif found and what is What.runs:
        print_runs(found)
    elif found:
        shown = [{key: value for key, value in one.items() if key not in LEFT_OUT.get(what, ())} for one in found]
        forms = {What.models: _in_millions, What.presets: _as_typed}
        _print(forms[what](shown) if what in forms else shown)
    if not found:
        typer.echo(empty, err=True)


def backends(device: str | None = None) -> list[dict[str, Any]]:
    """Every backend, with its passes and why it cannot run on the device (None where it can)."""
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise Refusal(f"--device {device!r} is unknown; write cpu or cuda")
    # Imports torch: here, so that nothing else on the command line waits for it.
    registry = importlib.import_module("dmabench.kernels.registry")
    if device is None:
        device = "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    return [
        {
            "backend": backend.id,
            "passes": list(backend.passes_on(kind)),
            "device": device,
            "unavailable": backend.unavailable(kind),
        }
        for backend in registry.backends()
    ]


def _models() -> list[dict[str, Any]]:
    # Imports torch and transformers.
    table: list[dict[str, Any]] = importlib.import_module("dmabench.tasks.parameters").table()
    return table


def _in_millions(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameters as a terminal shows them; --json has every digit."""
    return [
        {
            key.replace("percent_off_mha", "off mha"): f"{value / 1e6:.3f}M"
            if isinstance(value, int)
            else f"{value:+.2f}%"
            if isinstance(value, float)
            else value
            for key, value in row.items()
        }
        for row in table
    ]


def _runs(results: str | None) -> tuple[list[dict[str, Any]], str]:
    root = runs.results_root(results, create=False)
    return list_runs(root), f"No run under {root} yet: make one with `dmabench kernels --quick`."


def _claims() -> list[dict[str, Any]]:
    from dmabench.claims.verdicts import load_claims

    return [
        {"claim": one.id, "statement": one.statement, "source": one.source, "command": one.command}
        for one in load_claims()
    ]


def _tasks() -> list[dict[str, Any]]:
    """Every task, with its axes and presets, or why it cannot be used."""
    from dmabench.tasks import registry
    from dmabench.trials.loading import load

    listed: list[dict[str, Any]] = []
    for name, about in registry.names().items():
        try:
            task = load(name)
        except Refusal as refusal:
            listed.append({"task": name, "about": str(refusal), "axes": [], "presets": []})
            continue
        axes = [axis.name for axis in task.axes]
        listed.append({"task": name, "about": task.about or about, "axes": axes, "presets": list(task.presets)})
    return listed


def _presets() -> list[dict[str, Any]]:
    """Of `dmabench kernels` and of every task that can be used."""
    from dmabench.tasks import registry
    from dmabench.trials.loading import load
    from dmabench.workload.presets import PRESETS

    listed = [{"preset": name, "command": "kernels", **settings} for name, settings in PRESETS.items()]
    for name in registry.names():
        with suppress(Refusal):  # `list tasks` says why
            for preset, of in load(name).presets.items():
                listed.append({"preset": preset, "command": name, "about": of.about, "blocks": list(of.blocks)})
    return listed


def _as_typed(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Presets of tasks as a person would write them: switches as such, and nothing that is so by default, on a CPU
    and on a GPU; --json has every value."""
    from dmabench.tasks import registry

    shown = []
    for one in listed:
        if one["command"] != "kernels":
            task = registry.get(one["command"])
            switches = {axis.name for axis in task.axes if axis.type is bool}
            blocks = [
                {
                    name: str(value).lower() in ("yes", "true") if name in switches else value
                    for name, value in block.items()
                    if any(str(defaults.get(name)) != str(value) for defaults in task.defaults.values())
                }
                for block in one["blocks"]
            ]
            one = {**one, "blocks": blocks}
        shown.append(one)
    return shown


def _print(found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    columns = list(dict.fromkeys(key for one in found for key in one))
    for number, column in enumerate(columns):
        # The first column is what people copy: it is never cut.
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for one in found:
        table.add_row(*(Text(_text(one.get(column))) for column in columns))
    Console(soft_wrap=False).print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return (
            "\n".join(_text(item) for item in value)
            if any(isinstance(item, dict) for item in value)
            else ", ".join(value)
        )
    if isinstance(value, dict):
        return " ".join(_flag(key.replace("_", "-"), item) for key, item in value.items())
    return str(value)


def _flag(name: str, value: Any) -> str:
    """An option as it is typed."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"
