"""`dmabench eval`: lm-eval's benchmarks on trained models, from the hub, from a folder of files or on sample items."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmabench.errors import Refusal

if TYPE_CHECKING:
    from dmabench.cli.eval_input import Asked
    from dmabench.evals.cells import EvalCell
    from dmabench.tasks.downstream.peers import Peers

EXAMPLES = """
[bold]Examples[/bold]

  dmabench eval --tasks sample

  dmabench eval --model runs/dma --model runs/mha --tasks lambada_openai,mmlu --shots 0,5

  torchrun --nproc-per-node 8 -m dmabench eval --model Qwen/Qwen3-0.6B --suite paper --data DIR
"""
FIRST = "dmabench eval --tasks sample"
"""What makes a run without any checkpoint or text."""
WHAT, HOW = "What to score", "How"
BATCH = {"cuda": 64, "cpu": 8}
"""Sequences at once by default."""


def _what(flag: str, text: str, **more: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=WHAT, **more)


def _how(flag: str, text: str, **more: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=HOW, **more)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval", rich_help_panel="Evaluate", epilog=EXAMPLES)(evaluate)


def evaluate(
    model: Annotated[
        list[str] | None, _what("--model", "A checkpoint's folder, a name on the hub, or untrained:PRESET. Repeatable.")
    ] = None,
    tasks: Annotated[
        str | None, _what("--tasks", "lm-eval's tasks and groups: lambada_openai,mmlu; or sample.")
    ] = None,
    suite: Annotated[str | None, _what("--suite", "paper (Table 2 of the article) or long (RULER).")] = None,
    shots: Annotated[str | None, _what("--shots", "Examples in the prompt: 0,5. Default: the task's own.")] = None,
    limit: Annotated[int | None, _what("--limit", "Only the first examples of each task.", min=1)] = None,
    data: Annotated[
        str | None, _what("--data", "Folder of local files; alone it is listed.", envvar="DMABENCH_DATA", metavar="DIR")
    ] = None,
    window: Annotated[str | None, _what("--window", "Other windows than trained with (swa, nsa, dma): 256,1k.")] = None,
    lengths: Annotated[str | None, _what("--lengths", "Lengths for RULER: 4k to 128k. Default 4k.")] = None,
    device: Annotated[str, _how("--device", "cpu, cuda, or auto: cuda where there is one.")] = "auto",
    batch: Annotated[
        int | None, _how("--batch", "Sequences at once; halved where memory ends. Default 64 on a GPU, else 8.", min=1)
    ] = None,
    dtype: Annotated[str, _how("--dtype", "auto (the checkpoint's), fp32, bf16 or fp16.")] = "auto",
    tokenizer: Annotated[str | None, _how("--tokenizer", "Folder of another tokenizer.", metavar="DIR")] = None,
    log_samples: Annotated[bool, _how("--log-samples", "Keep lm-eval's log of every example.")] = False,
    results: Annotated[str | None, _how("--results", "Folder for runs (DMABENCH_RESULTS, else ./results).")] = None,
    resume: Annotated[str | None, _how("--resume", "Go on with a run: its folder, its name, or latest.")] = None,
    dry_run: Annotated[bool, _how("--dry-run", "Print what would be scored and stop.")] = False,
    as_json: Annotated[bool, _how("--json", "Print rows as JSON lines instead of tables.")] = False,
) -> None:
    """Score models on lm-eval's benchmarks: several models in one table, with errors, chance, and paired tests.

    Tasks, prompts and metrics are lm-eval's own. `--data DIR` alone lists what a folder can serve.
    """
    from dmabench.cli import eval_output
    from dmabench.cli.eval_input import understand
    from dmabench.tasks.downstream.checkpoints import DTYPES

    if dtype not in ("auto", *DTYPES):
        raise Refusal(f"--dtype {dtype!r} is unknown; choose from auto, {', '.join(DTYPES)}")
    if data is not None and tasks is None and suite is None and not model:
        eval_output.print_served(data, as_json)
        return
    asked = understand(model or [], tasks, suite, shots, window, lengths, data)
    if dry_run:
        eval_output.print_asked(asked, limit, as_json)
        return
    settings = {
        "tasks": [name for name, _ in asked.tasks],
        "shots": asked.shots,
        "windows": asked.windows,
        "lengths": list(asked.lengths),
        "limit": limit,
        "data": asked.data.resolve().name if asked.data else None,
        "dtype": dtype,
        "tokenizer": Path(tokenizer).name if tokenizer else None,
    }
    how = {"batch": batch, "dtype": dtype, "tokenizer": tokenizer, "log_samples": log_samples}
    run, cells, interrupted = _score(asked, limit, device, how, settings, results, resume)
    if run is not None:
        sys.exit(eval_output.print_run(run, cells, asked, as_json, interrupted))
    sys.exit(130 if interrupted else 0)


def _score(
    asked: "Asked",
    limit: int | None,
    device: str,
    how: dict[str, Any],
    settings: dict[str, Any],
    results: str | None,
    resume: str | None,
) -> tuple[Any, "list[EvalCell]", bool]:
    """Score what a resumed run has not: (the run, or None in a process that stores nothing; cells; interrupted)."""
    from dmabench.cli.output import say
    from dmabench.tasks.downstream import hub

    # Before tqdm and the hub's client are imported: lm-eval's bars would run into ours.
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not asked.hub and all(Path(name).expanduser().is_dir() or ":" in name for name in asked.models):
        hub.go_offline()  # nothing to ask it for
    elif not hub.answers():
        say("note: the hub cannot be reached: only what was fetched before is here", "yellow")
        hub.go_offline()

    from dmabench.cli.kernels_input import choose_device
    from dmabench.evals.cells import labels, make_cells
    from dmabench.store.runs import Run, find_run, results_root
    from dmabench.tasks.downstream.checkpoints import check, find
    from dmabench.tasks.downstream.peers import join

    device = choose_device(device)
    how = how | {"batch": how["batch"] or BATCH[device.split(":")[0]]}
    try:
        sources = dict(zip(labels(asked.models), [find(name) for name in asked.models], strict=True))
        for source in sources.values():
            check(source, asked.windows, how["tokenizer"])
    except ValueError as error:
        raise Refusal(str(error)) from error

    resumed = None if resume is None else find_run(results_root(results), resume, FIRST)

    # What can be refused has been: these import lm_eval.
    from dmabench.cli.eval_output import progress_bar
    from dmabench.evals.run import Plan, score_cells, tasks_of
    from dmabench.store import environment

    peers = join()
    chosen = _own_device(device, peers)
    models = [(label, source.weights) for label, source in sources.items()]
    cells = make_cells(models, asked.windows, asked.tasks, asked.shots_of, limit, asked.lengths)
    found = environment.describe(("transformers", "tokenizers", "lm-eval", "datasets"))
    settings = {**settings, "batch": how["batch"], "models": [f"{label} {weights}" for label, weights in models]}
    first = peers.rank == 0
    with progress_bar(cells, shown=first) as (told, advance):
        plan = Plan(
            sources=sources,
            device=chosen,
            device_name=environment.device_name(found, chosen),
            data=asked.data,
            hub=asked.hub,
            told=told,
            said=lambda sentence: say(f"note: {sentence}", "yellow") if first else None,
            **how,
        )
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        run: Run | None = None
        try:
            with tasks_of(plan, cells) as tasks:
                if first and resumed is not None:
                    run = Run.resume(resumed, "eval", settings, found)
                elif first:
                    run = Run.start(results_root(results), "eval", sys.argv[1:], settings, found)
                done, folder = peers.from_first((run.done(), run.path) if run is not None else None)
                advance(sum(cell.id in done for cell in cells))
                score_cells([cell for cell in cells if cell.id not in done], plan, tasks, run, folder, peers, advance)
        except KeyboardInterrupt:
            if run is not None:
                run.finish("interrupted")
            return run, cells, True
        except BaseException:
            if run is not None:
                run.finish("interrupted")
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if run is not None:
        run.finish("finished")
    return run, cells, False


def _own_device(device: str, peers: "Peers") -> str:
    """Each process of a machine takes a GPU of its own."""
    if peers.world == 1 or not device.startswith("cuda"):
        return device
    import torch

    if peers.local_rank >= torch.cuda.device_count():
        raise Refusal(
            f"{peers.local_rank + 1} processes or more for {torch.cuda.device_count()} GPUs: start torchrun with "
            f"--nproc-per-node {torch.cuda.device_count()}"
        )
    return f"cuda:{peers.local_rank}"
