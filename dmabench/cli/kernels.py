"""`dmabench kernels`: time attention backends, forward, backward and decoding, after proving that they are right."""

import math
import signal
import sys
from typing import Annotated, Any

import typer

from dmabench.cli.kernels_input import (
    check_delta_files,
    check_replay,
    check_words,
    choose_device,
    expand,
    label_delta_files,
    settings_blocks,
    switched,
)
from dmabench.cli.kernels_models import check_lengths, take_models, written
from dmabench.cli.kernels_output import print_cells, print_run
from dmabench.cli.output import exit_code, progress_bars
from dmabench.errors import Refusal
from dmabench.workload.cells import Cell, by_shape
from dmabench.workload.presets import PRESETS

EXAMPLES = """
[bold]Examples[/bold]

  dmabench kernels --seqlen 8192

  dmabench kernels --seqlen 1k:128k:x2 --pass fwd,bwd --backend 'dma*'

  dmabench kernels --pass decode --seqlen 4k:512k:x2 --level kernel,layer
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
    window: Annotated[str | None, _text("--window", "Keys a query may attend to (dma, swa, nsa).")] = None,
    pass_: Annotated[str | None, _text("--pass", "fwd, bwd, fwd+bwd, decode (one token after --seqlen).")] = None,
    backend: Annotated[str | None, _text("--backend", "Globs of ids, such as 'dma*' or flex.")] = None,
    delta: Annotated[
        str | None,
        _text("--delta", "iid, rising, falling, clustered, ar1, sawtooth, constant, file:X.npy, model:DIR[:LAYER]."),
    ] = None,
    text: Annotated[
        str | None, _text("--text", "What the model of --delta reads: a file, a folder, synthetic.")
    ] = None,
    batch: Annotated[str | None, _text("--batch", "Batch sizes.")] = None,
    heads: Annotated[str | None, _text("--heads", "Query heads.")] = None,
    kv_heads: Annotated[str | None, _text("--kv-heads", "Key/value heads.")] = None,
    head_dim: Annotated[str | None, _text("--head-dim", "Head dimensions, 16 to 256.")] = None,
    dtype: Annotated[str | None, _text("--dtype", "fp32, fp16, bf16.")] = None,
    level: Annotated[str | None, _text("--level", "kernel: q, k, v to output. layer: hidden states to output.")] = None,
    preset: Annotated[str | None, _text("--preset", f"{', '.join(PRESETS)} (dmabench list presets).")] = None,
    quick: Annotated[bool, _text("--quick", "The smallest honest run, the same as --preset quick.")] = False,
    no_dense: Annotated[bool, _text("--no-dense", "Leave out dense rows (there is no speed-up then).")] = False,
    replay: Annotated[bool, _how("--replay", "Time replays of CUDA graphs: no launches.")] = False,
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
    INCORRECT and has no time. Defaults follow the device, and backends the pass and the level.
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
    check_words(given, preset)
    models = take_models(given, text, preset)
    device = choose_device(device)
    blocks = settings_blocks(given, preset, device)
    delta_files = label_delta_files(blocks)
    cells = expand(blocks, device, seed, dense=not no_dense)
    check_delta_files(cells, delta_files)
    check_lengths(models, cells)
    if replay:
        check_replay(cells)
    kernels_on = switched()
    if dry_run:
        print_cells(cells, as_json)
        return
    settings = {"blocks": blocks, "seed": seed, "device": device, "preset": preset}
    if replay:
        settings["replay"] = True
    settings |= kernels_on
    cap_s = cap if cap is not None else (2.0 if device.startswith("cuda") else 4.0)
    options: dict[str, Any] = {"cap_s": cap_s, "replay": replay}
    from dmabench.tables.kernels import add_speedups

    with written(models, cells, device) as files:
        options["delta_files"] = delta_files | files
        run, interrupted = _measure(cells, settings, options, results, resume, cell_timeout)
    rows = _in_order(add_speedups(run.rows()), cells)
    which = f"preset {preset}" if preset else "defaults"
    about = PRESETS[preset]["about"] if preset else f"for a {'GPU' if device.startswith('cuda') else 'CPU'}"
    print_run(run, rows, f"{which} ({about})", as_json, interrupted, left=len(cells) - len(rows))
    sys.exit(exit_code(rows, interrupted))


def _measure(
    cells: list[Cell],
    settings: dict[str, Any],
    options: dict[str, Any],
    results: str | None,
    resume: str | None,
    cell_timeout: float,
) -> tuple[Any, bool]:
    """Measure what a resumed run has not; (run, interrupted). Rows of a shape are on disk before the next shape."""
    from dmabench.store import environment
    from dmabench.store.runs import Run, find_run, results_root
    from dmabench.timing.isolation import Worker

    root = results_root(results)
    found = environment.describe()
    if resume is None:
        run = Run.start(root, "kernels", sys.argv[1:], settings, found)
    else:
        run = Run.resume(find_run(root, resume), "kernels", settings, found)
    done = run.done()
    progress = progress_bars()
    # A scheduler's end of time is a Ctrl-C: the manifest says "interrupted", and --resume goes on.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        log = None if "--debug" in sys.argv else run.path / "worker.log"
        with progress, Worker(cell_timeout, log) as worker:
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
    from dmabench.tables.kernels import add_speedups

    before = run.rows()
    rows = [{**message["row"], "run": run.name, "device": device} for message in messages]
    for row, message in zip(add_speedups(before + rows)[len(before) :], messages, strict=True):
        run.append(row, message.get("samples"))


def _in_order(rows: list[dict[str, Any]], cells: list[Cell]) -> list[dict[str, Any]]:
    place = {cell.id: n for n, cell in enumerate(cells)}
    return sorted((row for row in rows if row["cell"] in place), key=lambda row: place[row["cell"]])
