"""`dmabench doctor`: does everything that measuring needs work here, and if not, what to do?"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dmabench.errors import Refusal
from dmabench.store import environment, runs

HELP = """Check that everything measuring needs works on this machine.

Exit code 0 if all that is required works, else 1. Every failing line says what to do.

[bold]Examples[/bold]

dmabench doctor

dmabench doctor --json

dmabench doctor --results results
"""

# In a process of its own: a torch that cannot be imported, or that crashes, is a finding and not the end of the check.
# -P keeps the current folder off sys.path, where a checkout's `kernels` would be found.
PROBE = [sys.executable, "-P", "-c"]
TORCH = "import torch, json; c = torch.cuda.is_available(); print(json.dumps([torch.__version__, c, torch.version.cuda, c and torch.cuda.get_device_name()]))"  # noqa: E501
TRITON = "import triton, json; print(json.dumps([triton.__version__]))"
BACKENDS = "import json; from dmabench.cli.listing import backends; print(json.dumps(backends()))"
MIN_MEMORY_GIB = 4
MIN_DISK_GIB = 1


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it works, whether measuring needs it, what was found, what to do."""

    name: str
    ok: bool
    required: bool
    found: str
    fix: str = ""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("doctor", help=HELP, rich_help_panel="Look")(doctor)


def doctor(
    results: Annotated[str | None, typer.Option(metavar="DIR", help="The folder that holds the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as a JSON list.")] = False,
) -> None:
    """Prints the checks; exits with 1 when a required one fails."""
    checks = [*_software(), *_machine(results), *_backends()]
    broken = [check for check in checks if check.required and not check.ok]
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.name) for check in checks)
        lines = []
        for check in checks:
            mark, colour = ("ok", "green") if check.ok else ("FAIL", "red") if check.required else ("--", "yellow")
            lines.append(f"{_coloured(f'{mark:4}', colour)}  {check.name:{width}}  {check.found}")
            if not check.ok and check.fix:
                lines.append(f"      {'':{width}}  -> {check.fix}")
        # At once: a reader that hangs up after the first line (`| head`) must not change the exit code.
        typer.echo("\n".join(lines))
        typer.echo(f"{len(broken)} required check(s) failed." if broken else "Everything required works.", err=True)
    raise typer.Exit(1 if broken else 0)


def _coloured(text: str, colour: str) -> str:
    return text if os.environ.get("NO_COLOR") else typer.style(text, fg=colour)


def _software() -> list[Check]:
    version = environment.platform.python_version()
    checks = [Check("python", sys.version_info >= (3, 11), True, version, "install Python 3.11 or newer")]
    found, error = _probe(TORCH)
    checks.append(
        Check("torch", _at_least(found, (2, 11)), True, found[0] if found else error, "install torch 2.11 or newer")
    )
    linux = sys.platform == "linux"
    triton, error = _probe(TRITON)
    fix = "pip install 'triton>=3.6'" if linux else "Triton exists on Linux only; its backends stay unavailable"
    checks.append(Check("triton", triton is not None, linux, triton[0] if triton else error, fix))
    # A CXX that is set is what the compiler cache will call, so nothing else counts then.
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    compiler = next((name for name in candidates if shutil.which(name)), None)
    fix = "install g++ (FlexAttention on the CPU is compiled with it), or set CXX"
    checks.append(
        Check("C++ compiler", compiler is not None, True, Path(compiler).name if compiler else "none found", fix)
    )
    if found and found[1]:
        drivers = ", ".join(dict.fromkeys(str(gpu["driver"]) for gpu in environment.gpus())) or "unknown"
        checks.append(Check("CUDA", True, False, f"{found[3]}, CUDA {found[2]}, driver {drivers}"))
    else:
        gpus = environment.gpus()
        seen = f"a GPU ({gpus[0]['name']}), but torch cannot use it" if gpus else "no CUDA device, CPU only"
        fix = (
            "install a torch built for CUDA and a driver that supports it"
            if gpus
            else "nothing, unless you want GPU rows"
        )
        checks.append(Check("CUDA", False, False, seen, fix))
    return checks


def _machine(results: str | None) -> list[Check]:
    checks = []
    available = environment.available_memory()
    if available is not None:
        memory = available / 2**30
        fix = f"free some: under {MIN_MEMORY_GIB} GiB the dense rows at T = 8192 may run out"
        checks.append(Check("free memory", memory >= MIN_MEMORY_GIB, False, f"{memory:.1f} GiB", fix))
    try:
        root = runs.results_root(results)
        # Shown as the user named it: an absolute path would say more about the machine than is asked.
        checks.append(Check("results folder", True, True, f"{root} can be written"))
        disk = shutil.disk_usage(root).free / 2**30
        fix = f"free some, or name another folder with --results DIR: {MIN_DISK_GIB} GiB should be free"
        checks.append(Check("free disk", disk >= MIN_DISK_GIB, False, f"{disk:.1f} GiB", fix))
    except Refusal as refusal:
        checks.append(Check("results folder", False, True, str(refusal), "name another with --results DIR"))
    return checks


def _backends() -> list[Check]:
    found, error = _probe(BACKENDS)
    if found is None:
        return [
            Check("backends", False, True, error, "see the first failing line above; reinstall with pip install -e .")
        ]
    checks = [
        Check(
            one["backend"],
            one["unavailable"] is None,
            False,
            one["unavailable"] or f"{one['device']}: {', '.join(one['passes'])}",
        )
        for one in found
    ]
    usable = sum(check.ok for check in checks)
    fix = "every backend above says why it cannot run"
    return [*checks, Check("backends", usable > 0, True, f"{usable} of {len(checks)} can run here", fix)]


def _probe(code: str) -> tuple[list[Any] | None, str]:
    """The JSON list that the code prints in a process of its own, or None and the last line of its complaint."""
    try:
        done = subprocess.run([*PROBE, code], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"could not be tried: {type(error).__name__}"
    if done.returncode == 0:
        try:
            return json.loads(done.stdout.strip().splitlines()[-1]), ""
        except (ValueError, IndexError):
            return None, "printed something unexpected when it was imported"
    complaint = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return None, str(runs.plain(complaint[-1])) if complaint else f"ended with code {done.returncode}"


def _at_least(found: list[Any] | None, wanted: tuple[int, int]) -> bool:
    numbers = re.findall(r"\d+", str(found[0]))[:2] if found else []
    return tuple(int(number) for number in numbers) >= wanted
