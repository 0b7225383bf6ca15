"""`dmabench perplexity`: any causal language models on text, side by side: perplexity and bits per byte."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmabench.errors import Refusal

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
[bold]Examples[/bold]

  dmabench perplexity --model untrained:tiny --data synthetic

  dmabench perplexity --model runs/mha --model runs/dma --data books/validation.jsonl.xz --seqlen 512,2k

  dmabench perplexity --model Qwen/Qwen3-0.6B --data notes.txt --json
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("perplexity", rich_help_panel="Evaluate", epilog=EXAMPLES)(perplexity)


def perplexity(
    model: Annotated[
        list[str], typer.Option("--model", help="A checkpoint's folder, a name on the hub, or untrained:PRESET.")
    ],
    data: Annotated[str, typer.Option("--data", help="Text: a file, a folder, synthetic, or org/name of the hub.")],
    seqlen: Annotated[
        str | None, typer.Option("--seqlen", help="Tokens of a sequence: 512,2k. Default: as the model was trained.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens scored at most.", min=2)] = 1_000_000,
    text_field: Annotated[str, typer.Option("--text-field", help="Field of JSON lines that has the text.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse text with broken lines.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: cuda where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print rows as JSON lines instead of tables.")] = False,
) -> None:
    """Perplexity and bits per byte of models on text that they were not trained on, by position too.

    Every document is scored by itself, in sequences that do not overlap. Bits per byte compare models with different
    tokenizers; intervals are over documents, paired with the first model.
    """
    from dmabench.cli.kernels_input import choose_device
    from dmabench.cli.output import json_lines, say, to_stdout
    from dmabench.evals.cells import labels
    from dmabench.evals.held_out import compare, read_text, score
    from dmabench.tasks.downstream.checkpoints import check, check_name, find
    from dmabench.tasks.text_problems import Problems
    from dmabench.workload.sweeps import parse_sweep

    lengths = parse_sweep(seqlen, "--seqlen", 2) if seqlen else None
    scored: list[Any] = []
    problems = Problems(strict)
    try:
        for name in model:
            check_name(name)
        text = read_text(data, text_field, problems, tokens)
        sources = dict(zip(labels(model), [find(name) for name in model], strict=True))
        for source in sources.values():
            check(source)
        chosen = choose_device(device)
        for label, source in sources.items():
            scored += score(label, source, text, lengths, tokens, chosen, lambda done: None)
    except ValueError as error:
        raise Refusal(str(error)) from error
    rows = compare(scored)
    if as_json:
        to_stdout(lambda console: json_lines(console, rows))
    else:
        to_stdout(lambda console: _print(console, rows))
    if problems.sentence:
        say(f"note: {problems.sentence}", "yellow")
    if any(row["low"] is None for row in rows):
        say("note: one document says nothing about the spread between documents: no intervals", "yellow")
    sys.exit(0)


def _print(console: "Console", rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    first = rows[0]
    title = f"{first['text']} · {first['documents']} documents · {first['tokens']} tokens · {first['bytes']} bytes"
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "show_edge": False}
    table = Table(**style)
    for header in ("model", "attention", "w", "T", "perplexity", "bits/byte", "95%", "minus the first"):
        table.add_column(header, justify="left" if header in ("model", "attention") else "right")
    for row in rows:
        window = "" if row["window"] is None else str(row["window"])
        interval = "" if row["low"] is None else f"{row['low']:.4f}-{row['high']:.4f}"
        paired = ""
        if row["difference"] is not None:
            paired = f"{row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        numbers = f"{row['perplexity']:.4g}", f"{row['bits_per_byte']:.4f}"
        table.add_row(row["model"], str(row["attention"]), window, str(row["seqlen"]), *numbers, interval, paired)
    console.print(title, style="bold", highlight=False)
    console.print(table)
    positions = Table(**style)
    longest = max((row["position_from"] for row in rows), key=len)
    positions.add_column("model")
    positions.add_column("T", justify="right")
    for start in longest:
        positions.add_column(f"{start}+", justify="right")
    for row in rows:
        positions.add_row(row["model"], str(row["seqlen"]), *(f"{one:.3f}" for one in row["position_bits_per_byte"]))
    console.print("\nbits/byte by position in the sequence", style="bold")
    console.print(positions)
