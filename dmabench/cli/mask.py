"""`dmabench mask`: what masks are like, head by head: of a distribution of importance, or of a model on a text."""

import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmabench.errors import Refusal

if TYPE_CHECKING:
    from dmabench.store.runs import Run

HELP = """Show the masks of heads: keys that matter, how long they live, ties, and the tiles that a kernel touches.

Of the distributions that `dmabench kernels` times (--delta), or of a trained model on a text (--model, --text).

[bold]Examples[/bold]

dmabench mask --delta iid,rising,clustered

dmabench mask --delta iid --seqlen 8k,32k,128k --window 1k --json

dmabench mask --model untrained:tiny --text synthetic --seqlen 2k
"""
Row = dict[str, Any]
DELTA, SEQLEN, WINDOW, KV_HEADS = "iid", 8192, "1k", 2


def _which(flag: str, text: str, panel: str) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel)


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("mask", help=HELP, rich_help_panel="Look")(mask)


def mask(
    delta: Annotated[
        str | None,
        _which("--delta", f"As kernels names them: iid, rising, ..., file:X.npy. Default {DELTA}.", "A distribution"),
    ] = None,
    kv_heads: Annotated[
        int | None, _which("--kv-heads", f"Key/value heads. Default {KV_HEADS}.", "A distribution")
    ] = None,
    seed: Annotated[int | None, _which("--seed", "Of the distribution. Default 0.", "A distribution")] = None,
    model: Annotated[
        str | None, _which("--model", "A checkpoint's folder, a name on the hub, or untrained:PRESET.", "A model")
    ] = None,
    text: Annotated[
        str | None, _which("--text", "What the model reads: a file, a folder, synthetic, org/name.", "A model")
    ] = None,
    layer: Annotated[str | None, _which("--layer", "Layers, from 0: 0,3. Default: all with dma.", "A model")] = None,
    device: Annotated[
        str, _which("--device", "For the model: cpu, cuda, or auto: cuda where there is one.", "A model")
    ] = "auto",
    seqlen: Annotated[
        str | None,
        _which("--seqlen", "Lengths: 8k,32k. Default 8k, or less: as the model was trained, or its text.", "Both"),
    ] = None,
    window: Annotated[
        str | None, _which("--window", f"Keys a query attends to. Default {WINDOW}, or the model's own.", "Both")
    ] = None,
    results: Annotated[
        str | None, _which("--results", "Folder for runs (DMABENCH_RESULTS, else ./results).", "Both")
    ] = None,
    as_json: Annotated[bool, _which("--json", "Print rows as JSON lines instead of a table.", "Both")] = False,
) -> None:
    """Stores a row a head, draws their lifetimes and prints the table."""
    from dmabench.workload.sweeps import parse_sweep

    lengths = parse_sweep(seqlen, "--seqlen", 2) if seqlen else None
    windows = parse_sweep(window, "--window") if window else None
    if model is None:
        if text is not None or layer is not None:
            raise Refusal(f"--{'text' if text is not None else 'layer'} is of a model: name one with --model DIR")
        if kv_heads is not None and kv_heads < 1:
            raise Refusal(f"--kv-heads {kv_heads}: write how many, at least 1")
        cells = _of_distributions(delta, lengths, windows, kv_heads or KV_HEADS, seed or 0)
    else:
        given = {"--delta": delta, "--kv-heads": kv_heads, "--seed": seed}
        wrong = [flag for flag, value in given.items() if value is not None]
        if wrong:
            raise Refusal(f"{wrong[0]} is of a distribution, and --model names a model: leave one of them out")
        if text is None:
            raise Refusal("--model needs --text FILE, whose tokens the model gives importance to (or synthetic)")
        layers = parse_sweep(layer, "--layer", 0) if layer else None
        cells = _of_model(model, text, layers, lengths, windows, device)
    settings = {"delta": delta, "kv_heads": kv_heads, "seed": seed, "model": model, "text": text, "layer": layer}
    run, rows, interrupted = _store(cells, settings | {"seqlen": seqlen, "window": window}, results)
    _print(run, rows, as_json)
    sys.exit(130 if interrupted else 0)


def _of_distributions(
    delta: str | None, lengths: list[int] | None, windows: list[int] | None, kv_heads: int, seed: int
) -> Iterator[list[Row]]:
    from dmabench.cli.kernels_input import label_delta_files
    from dmabench.workload.cells import delta_words
    from dmabench.workload.sweeps import parse_sweep

    block = {"delta": delta or DELTA}
    files = label_delta_files([block])
    names = delta_words(block["delta"])
    unread = [name for name in names if name.startswith("model:")]
    if unread:
        raise Refusal(f"--delta {unread[0]}: here a model is named with --model DIR --text FILE")
    # Imports torch: after all that can be refused without.
    from dmabench.workload.masks import distribution_rows

    return distribution_rows(names, lengths or [SEQLEN], windows or parse_sweep(WINDOW, ""), kv_heads, seed, files)


def _of_model(
    name: str, text: str, layers: list[int] | None, lengths: list[int] | None, windows: list[int] | None, device: str
) -> Iterator[list[Row]]:
    from dmabench.cli.kernels_input import choose_device
    from dmabench.cli.output import say
    from dmabench.tasks.text_importance import check, read
    from dmabench.workload.masks import model_rows

    try:
        shape = check(name, text, max(lengths) if lengths else None)
        tokens = max(lengths) if lengths else min(SEQLEN, shape.trained or SEQLEN)
        say(f"reading {tokens} tokens of {text} with {name}", "dim")
        found = read(name, text, tokens, choose_device(device), windows or (), layers, shorter=lengths is None)
    except ValueError as error:
        raise Refusal(str(error)) from error
    if found.problems:
        say(f"note: {found.problems}", "yellow")
    if shape.trained is not None and tokens > shape.trained:
        say(f"note: {name} was trained with sequences of {shape.trained} tokens, fewer than {tokens}", "yellow")
    there = next(iter(found.deltas.values())).shape[-1]
    if there < tokens:
        say(f"note: the text ends after {there} tokens", "yellow")
    return model_rows(found, lengths or [there])


def _store(cells: Iterator[list[Row]], settings: dict[str, Any], results: str | None) -> "tuple[Run, list[Row], bool]":
    """Rows are on disk cell by cell: (the run, its rows, interrupted)."""
    from dmabench.store import environment
    from dmabench.store.runs import Run, results_root
    from dmabench.workload.masks import COMMAND

    root = results_root(results)
    first = next(cells)  # before there is a folder: what is refused leaves none
    run = Run.start(root, COMMAND, sys.argv[1:], settings, environment.describe(("transformers",)))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows: list[Row] = []
    interrupted = False
    try:
        while first:
            rows += [run.append(row) for row in first]
            first = next(cells, [])
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
        run.finish("interrupted" if interrupted or sys.exc_info()[0] else "finished")
    return run, rows, interrupted


def _print(run: "Run", rows: list[Row], as_json: bool) -> None:
    from dmabench.charts.masks import draw_run
    from dmabench.cli.output import WIDTH, json_lines, say, to_stdout
    from dmabench.tables.kernels import drawn
    from dmabench.tables.masks import layout

    charts = "charts"
    try:
        draw_run(run.path)
    except OSError as error:
        charts = f"no charts ({error.strerror or error})"
    if as_json:
        to_stdout(lambda console: json_lines(console, rows))
    else:
        to_stdout(lambda console: console.print(drawn(layout(rows, min(WIDTH, console.width)), lambda row: "")))
    say(f"rows and {charts}: {run.path}", wrap=False)
