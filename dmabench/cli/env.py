"""`dmabench env`: what a run's manifest says of this machine, before there is a run."""

import json
import os
from typing import Annotated, Any

import typer

from dmabench.store import environment

HELP = """Show what a run would record of this machine: versions, commit, devices and their state.

Whether it all works is what `dmabench doctor` checks.

[bold]Examples[/bold]

dmabench env

dmabench env --json

dmabench env --json > machine.json
"""
MORE = (
    "accelerate",
    "transformers",
    "lm-eval",
    "datasets",
    "tokenizers",
    "pandas",
    "matplotlib",
    "pyarrow",
    "fla-core",
)
"""Packages besides those that every run names."""
VARIABLES = (
    "DMABENCH_RESULTS",
    "DMABENCH_DATA",
    "DMABENCH_COMMIT",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "NO_COLOR",
)
"""What changes what dmabench does."""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("env", help=HELP, rich_help_panel="Look")(env)


def env(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Prints the environment on standard output."""
    from dmabench.store.run_folder import plain

    described = environment.describe(MORE)
    now = {
        "device": environment.device_name(described),
        "memory_gib": _gib(environment.available_memory()),
        "gpu_state": environment.gpu_state(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    found = plain(described | now)  # as stored: folders are cut to their names
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    lines = _lines(found)
    width = max(len(name) for name, _ in lines)
    typer.echo("\n".join(f"{name:{width}}  {value}" for name, value in lines))


def _gib(bytes_: int | None) -> float | None:
    return None if bytes_ is None else round(bytes_ / 2**30, 1)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    git, cpu = found["git"], found["cpu"]
    commit = "none: not in a checkout" if git["sha"] is None else git["sha"] + ("-dirty" if git["dirty"] else "")
    lines = [("device", found["device"]), ("commit", commit), ("platform", found["platform"])]
    lines += [("CPU", f"{cpu['model']}, {cpu['cores']} cores"), ("free memory", f"{found['memory_gib']} GiB")]
    for number, gpu in enumerate(found["gpus"]):
        lines.append(
            (f"GPU {number}", f"{gpu['name']}, {gpu['memory_mib']:.0f} MiB, driver {gpu['driver']}, {gpu['uuid']}")
        )
    for number, state in enumerate(found["gpu_state"]):
        slowed = ", slowed down" if state["throttled"] else ""
        lines.append(
            (f"GPU {number} now", f"{state['sm_mhz']} MHz, {state['temperature_c']} C, {state['power_w']} W{slowed}")
        )
    lines += [("python", found["python"])]
    lines += [(name, version or "not installed") for name, version in found["versions"].items()]
    return lines + list(found["variables"].items())
