"""`dmabench kernels`: time attention backends, forward and backward, after proving that they are right."""

import math
import signal
import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from dmabench.cells import Cell, by_shape, make_cells
from dmabench.cli.kernels_output import exit_code, print_cells, print_run
from dmabench.errors import Refusal
from dmabench.presets import CPU, CUDA, PRESETS
from dmabench.sweeps import parse_sweep

EXAMPLES = """
[bold]Examples[/bold]

  dmabench kernels --seqlen 8192

  dmabench kernels --seqlen 1k:128k:x2 --pass fwd,bwd --backend 'dma*'

  dmabench kernels --preset paper --dry-run
"""


def _text(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel="What to measure")


def _how(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel="How")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("kernels", rich_help_panel="Measure", epilog=EXAMPLES)(kernels)


def kernels(
    seqlen: Annotated[str | None, _text("--seqlen", "Sequence lengths: 8192, 4k,8k, 1k:128k:x2, 1k:4k:512.")] = None,
    window: Annotated[str | None, _text("--window", "Keys a query may attend to (dma, swa).")] = None,
    pass_: Annotated[str | None, _text("--pass", "fwd, bwd, fwd+bwd, decode.")] = None,
    backend: Annotated[str | None, _text("--backend", "Globs of ids, such as 'dma*' or flex.")] = None,
    delta: Annotated[
        str | None,
        _text("--delta", "iid, rising, falling, clustered, ar1, sawtooth, constant, file:X.npy."),
    ] = None,
    batch: Annotated[str | None, _text("--batch", "Batch sizes.")] = None,
    heads: Annotated[str | None, _text("--heads", "Query heads.")] = None,
    kv_heads: Annotated[str | None, _text("--kv-heads", "Key/value heads.")] = None,
    head_dim: Annotated[str | None, _text("--head-dim", "Head dimensions, 16 to 256.")] = None,
    dtype: Annotated[str | None, _text("--dtype", "fp32, fp16, bf16.")] = None,
    level: Annotated[str, _text("--level", "kernel: q, k, v to output. layer: not built yet.")] = "kernel",
    preset: Annotated[str | None, _text("--preset", f"{', '.join(PRESETS)} (dmabench list presets).")] = None,
    quick: Annotated[bool, _text("--quick", "The smallest honest run, the same as --preset quick.")] = False,
    no_dense: Annotated[bool, _text("--no-dense", "Leave out dense rows (there is no speed-up then).")] = False,
    device: Annotated[str, _how("--device", "cpu, cuda, or auto: cuda where there is one.")] = "auto",
    seed: Annotated[int, _how("--seed", "Seed of inputs and of the order of rounds.")] = 0,
    cap: Annotated[float | None, _how("--cap", "Seconds of sampling a cell at most (GPU 2, CPU 4).")] = None,
    cell_timeout: Annotated[
        float, _how("--cell-timeout", "Seconds one stage of a cell may take (compiling, checking, one turn).")
    ] = 600,
    results: Annotated[str | None, _how("--results", "Folder for runs (DMABENCH_RESULTS, else ./results).")] = None,
    resume: Annotated[str | None, _how("--resume", "Go on with a run: its folder, its name, or latest.")] = None,
    dry_run: Annotated[bool, _how("--dry-run", "Print the cells and stop.")] = False,
    as_json: Annotated[bool, _how("--json", "Print rows as JSON lines instead of a table.")] = False,
) -> None:
    """Time attention over sequence lengths: importance, plan and kernel, against the fastest dense attention.

    Every backend is checked first, values and kept keys, forward and backward; one that computes something else is
    INCORRECT and has no time. Defaults follow the device.
    """
    given = {
        "seqlen": seqlen,
        "window": window,
        "pass": pass_,
        "backend": backend,
        "delta": delta,
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "dtype": dtype,
        "level": level,
    }
    if quick and preset not in (None, "quick"):
        raise Refusal(f"--quick is --preset quick; with --preset {preset} leave one of them out")
    preset = "quick" if quick else preset
    for flag, seconds in (("--cap", cap), ("--cell-timeout", cell_timeout)):
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise Refusal(f"{flag} {seconds:g}: write a number of seconds above 0")
    for name in ("seqlen", "window", "batch", "heads", "kv_heads", "head_dim"):
        if given[name] is not None:  # all of this before torch is imported, which takes seconds
            parse_sweep(given[name], f"--{name.replace('_', '-')}")
    _check_preset(preset)
    device = _device(device)
    blocks = _blocks(given, preset, device)
    delta_files = _label_delta_files(blocks)
    cells = _cells(blocks, device, seed, dense=not no_dense)
    _check_delta_files(cells, delta_files)
    if dry_run:
        print_cells(cells, as_json)
        return
    settings = {"blocks": blocks, "seed": seed, "device": device, "preset": preset}
    cap_s = cap if cap is not None else (2.0 if device.startswith("cuda") else 4.0)
    options = {"cap_s": cap_s, "delta_files": delta_files}
    from dmabench.tables import add_speedups

    run, interrupted = _measure(cells, settings, options, results, resume, cell_timeout)
    rows = _in_order(add_speedups(run.rows()), cells)
    which = f"preset {preset}" if preset else "defaults"
    about = PRESETS[preset]["about"] if preset else f"for a {'GPU' if device.startswith('cuda') else 'CPU'}"
    print_run(run, rows, f"{which} ({about})", as_json, interrupted, left=len(cells) - len(rows))
    sys.exit(exit_code(rows, interrupted))


def _check_preset(preset: str | None) -> None:
    if preset is not None and preset not in PRESETS:
        near = get_close_matches(preset, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(f"--preset {preset!r} is unknown; choose from {', '.join(PRESETS)}{hint}")


def _device(wanted: str) -> str:
    import torch

    if wanted not in ("auto", "cpu", "cuda") and not wanted.startswith("cuda:"):
        raise Refusal(f"--device {wanted!r} is unknown; write cpu, cuda, cuda:1 or auto")
    count = torch.cuda.device_count()  # makes no CUDA context
    if wanted == "auto":
        return "cuda" if count else "cpu"
    index = wanted.removeprefix("cuda").removeprefix(":") or "0"
    if wanted != "cpu" and not (index.isdigit() and int(index) < count):
        raise Refusal(f"--device {wanted}: torch sees {count} CUDA devices; see dmabench doctor, or use --device cpu")
    return wanted


def _blocks(given: dict[str, str | None], preset: str | None, device: str) -> list[dict[str, str]]:
    """Device defaults, overridden by the preset, overridden by flags."""
    defaults = CUDA if device.startswith("cuda") else CPU
    flags = {name: value for name, value in given.items() if value is not None}
    return [{**defaults, **block, **flags} for block in (PRESETS[preset]["blocks"] if preset else [{}])]


def _label_delta_files(blocks: list[dict[str, str]]) -> dict[str, str]:
    """Replace `file:PATH` by a label of name and content, so that no path reaches a row; label -> path."""
    import hashlib
    from pathlib import Path

    labels: dict[str, str] = {}
    for block in blocks:
        words = block["delta"].split(",")
        for n, word in enumerate(words):
            if not word.strip().startswith("file:"):
                continue
            path = Path(word.strip().removeprefix("file:"))
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
            except OSError as error:
                raise Refusal(f"--delta {word}: cannot read the file ({error.strerror}); give a .npy file") from error
            words[n] = f"file:{path.name}@{digest}"
            labels[words[n]] = str(path)
        block["delta"] = ",".join(words)
    return labels


def _check_delta_files(cells: list[Cell], files: dict[str, str]) -> None:
    """Refuse a file that does not fit now, not after an hour of other cells."""
    if not files:
        return
    from dmabench.inputs import delta_from_file

    for cell in cells:
        if cell.delta in files:
            path = files[cell.delta]
            try:
                delta_from_file(path, cell.shape.batch, cell.shape.kv_heads, cell.shape.seqlen)
            except (TypeError, ValueError) as error:
                raise Refusal(f"--delta file:{path}: holds no real numbers ({error}); save floats") from error


def _cells(blocks: list[dict[str, str]], device: str, seed: int, dense: bool) -> list[Cell]:
    from dmabench.kernels import backends

    known = [backend.id for backend in backends()]
    cells = [cell for block in blocks for cell in make_cells(block, known, device, seed, dense)]
    return list({cell.id: cell for cell in cells}.values())


def _measure(
    cells: list[Cell],
    settings: dict[str, Any],
    options: dict[str, Any],
    results: str | None,
    resume: str | None,
    cell_timeout: float,
) -> tuple[Any, bool]:
    """Measure what a resumed run has not; (run, interrupted). Rows are on disk before the next cell starts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dmabench import environment
    from dmabench.isolation import Worker
    from dmabench.runs import Run, find_run, results_root

    root = results_root(results)
    found = environment.describe()
    if resume is None:
        run = Run.start(root, "kernels", sys.argv[1:], settings, found)
    else:
        run = Run.resume(find_run(root, resume), "kernels", settings, found)
    done = run.done()
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    # A scheduler's end of time is a Ctrl-C: the manifest says "interrupted", and --resume goes on.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with progress, Worker(cell_timeout) as worker:
            task = progress.add_task("starting", total=len(cells), completed=len(done & {c.id for c in cells}))
            for group in by_shape(cells):
                left = [cell for cell in group if cell.id not in done]

                def began(cell: Cell, stage: str) -> None:
                    at = f"{cell.name} {cell.shape.pass_} T={cell.shape.seqlen}"
                    progress.update(task, description=f"{stage}: {at}" + (f" w={cell.window}" if cell.window else ""))

                timed: list[dict[str, Any]] = []
                try:
                    for message in worker.measure(left, options, began):
                        timed.append(message)
                        progress.advance(task)
                finally:  # Ctrl-C included: what was measured is kept
                    _append(run, timed, environment.device_name(found, group[0].shape.device))
    except KeyboardInterrupt:
        run.finish("interrupted")
        return run, True
    except BaseException:
        run.finish("interrupted")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    run.finish("finished")
    return run, False


def _append(run: Any, messages: list[dict[str, Any]], device: str) -> None:
    """Write rows of one shape, with the speed-ups over the dense rows that the run now has."""
    from dmabench.tables import add_speedups

    before = run.rows()
    rows = [{**message["row"], "run": run.name, "device": device} for message in messages]
    for row, message in zip(add_speedups(before + rows)[len(before) :], messages, strict=True):
        run.append(row, message.get("samples"))


def _in_order(rows: list[dict[str, Any]], cells: list[Cell]) -> list[dict[str, Any]]:
    place = {cell.id: n for n, cell in enumerate(cells)}
    return sorted((row for row in rows if row["cell"] in place), key=lambda row: place[row["cell"]])
