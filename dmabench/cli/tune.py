"""`dmabench tune`: which configuration of the Triton kernels is the fastest on this card; and the table of "auto"."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmabench.cli.output import say, to_stdout
from dmabench.errors import Refusal

if TYPE_CHECKING:
    from dmabench.kernels.dma_triton.tuned import Key
    from dmabench.timing.tuning import Candidate

HELP = """Time the candidate configurations of dma/triton on this GPU, and keep the fastest for later calls.

Each must give what the default gives. The winners go to triton-configs.json in ~/.cache/dmabench (or DMABENCH_CACHE, or
below XDG_CACHE_HOME); calls with this device, dtype and head dimension take them from then on. Delete it to undo that.

Nothing is ever tuned unless this command is run. --dry-run needs no GPU: it compiles the candidates and says what they
take. --from-rows makes kernels/measured.py, by which backend="auto" chooses, from the rows of runs.

[bold]Examples[/bold]

dmabench tune

dmabench tune --kernel forward --seqlen 32k --window 1k --head-dim 64 --no-store

dmabench tune --dry-run --arch 90

dmabench tune --from-rows results/reference --output kernels/measured.py
"""
KERNELS = ("forward", "queries", "keys")
DTYPES = ("bf16", "fp16")


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("tune", help=HELP, rich_help_panel="Measure")(tune)


def _what(flag: str, text: str, panel: str = "The shape") -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel)


def tune(
    kernel: Annotated[str, typer.Option(help="Of forward, queries (dq) and keys (dk, dv, ddelta): which.")] = ",".join(
        KERNELS
    ),
    seqlen: Annotated[str, _what("--seqlen", "Length: 8192 or 32k.")] = "32k",
    window: Annotated[str, _what("--window", "Keys a query attends to.")] = "1k",
    batch: Annotated[str, _what("--batch", "Sequences.")] = "1",
    heads: Annotated[str, _what("--heads", "Query heads.")] = "16",
    kv_heads: Annotated[str, _what("--kv-heads", "Key/value heads.")] = "8",
    head_dim: Annotated[str, _what("--head-dim", "Head dimension.")] = "128",
    dtype: Annotated[str, _what("--dtype", "bf16 or fp16.")] = "bf16",
    delta: Annotated[str, _what("--delta", "Distribution of importance, as kernels names it.")] = "iid",
    cap: Annotated[float, typer.Option(help="Seconds of timing a candidate.")] = 1.0,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or auto.")] = "auto",
    store: Annotated[bool, typer.Option("--store/--no-store", help="Keep the winners for later calls.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compile, and say what each takes.")] = False,
    arch: Annotated[
        int | None, typer.Option(help="With --dry-run: compute capability to compile for, as one number: 90.")
    ] = None,
    from_rows: Annotated[
        str | None,
        _what("--from-rows", "A folder of runs: print kernels/measured.py as their rows make it.", "The table of auto"),
    ] = None,
    output: Annotated[str | None, _what("--output", "Write it to this file instead.", "The table of auto")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print candidates as JSON lines.")] = False,
) -> None:
    """Prints the candidates as a table, and stores the winners."""
    if from_rows is not None:
        return _table_of_auto(from_rows, output)
    if output is not None:
        raise Refusal("--output is of --from-rows: name the folder of runs")
    if arch is not None and not dry_run:
        raise Refusal("--arch is of --dry-run: candidates are timed on the GPU that is here")
    named = [word.strip() for word in kernel.split(",")]
    unknown = [word for word in named if word not in KERNELS]
    if unknown:
        raise Refusal(f"--kernel {unknown[0]!r} is unknown; choose from {', '.join(KERNELS)}")
    if dtype not in DTYPES:
        raise Refusal(f"--dtype {dtype!r}: there are candidates for {' and '.join(DTYPES)}")
    texts = {"seqlen": seqlen, "window": window, "batch": batch, "heads": heads, "kv_heads": kv_heads}
    sizes = {name: _number(text, name) for name, text in {**texts, "head_dim": head_dim}.items()}
    if sizes["heads"] % sizes["kv_heads"]:
        raise Refusal(f"--heads {sizes['heads']} is not a multiple of --kv-heads {sizes['kv_heads']}")
    if not 16 <= sizes["head_dim"] <= 256:
        raise Refusal(f"--head-dim {sizes['head_dim']} is outside 16..256, which is what the kernels are built for")
    if cap <= 0:
        raise Refusal(f"--cap {cap}: write how many seconds, more than 0")
    from dmabench.workload.cells import delta_words

    if len(delta_words(delta)) != 1 or delta.startswith(("file:", "model:")):
        raise Refusal(f"--delta {delta}: name one distribution")
    from dmabench.kernels.plan import pays_to_gather

    if not pays_to_gather(sizes["window"], sizes["seqlen"]):
        raise Refusal(
            f"--window {window} of --seqlen {seqlen}: keys are not gathered by list there, and what is tuned is for "
            "calls that gather them; take a window that is a smaller part of the length"
        )
    _needs_triton()
    if dry_run:
        found, key = _compiled(named, sizes, dtype, 90 if arch is None else arch), None
    else:
        found, key = _timed(named, sizes, dtype, delta, cap, device)
    _show(found, as_json)
    if key is None:
        return
    from dmabench.timing.tuning import winners

    best = winners(found)
    if not best:
        say("nothing could be timed: the default itself failed on this device (see above)", "red")
        sys.exit(3)
    _keep(best, key, {**sizes, "delta": delta}, store)


def _number(text: str, name: str) -> int:
    from dmabench.workload.sweeps import parse_sweep

    option = f"--{name.replace('_', '-')}"
    numbers = parse_sweep(text, option)
    if len(numbers) > 1:
        raise Refusal(f"{option} {text}: tune one shape at a time")
    return numbers[0]


def _needs_triton() -> None:
    from importlib.util import find_spec

    if find_spec("triton") is None:
        raise Refusal("Triton is not installed: its packages are for Linux, `pip install 'triton>=3.6'`")


def _candidates(named: list[str], sizes: dict[str, int], base: Any) -> list["Candidate"]:
    """The default first, then the others; without those that take more heads than share keys."""
    from dmabench.kernels.dma_triton.candidates import candidates
    from dmabench.kernels.dma_triton.configs import block_d
    from dmabench.timing.tuning import Candidate

    found = []
    groups = sizes["heads"] // sizes["kv_heads"]
    for kernel in named:
        default = getattr(base, kernel)
        found.append(Candidate(kernel, default, is_default=True))
        others = candidates(kernel, block_d(sizes["head_dim"]))
        found += [Candidate(kernel, one) for one in others if one != default and groups % one.heads == 0]
    return found


def _compiled(named: list[str], sizes: dict[str, int], dtype: str, arch: int) -> list["Candidate"]:
    from dmabench.kernels.dma_triton import configs
    from dmabench.kernels.dma_triton.ahead import SHARED_MEMORY
    from dmabench.timing.tuning import look_ahead
    from dmabench.workload.inputs import TORCH_DTYPE

    if arch not in SHARED_MEMORY:
        raise Refusal(f"--arch {arch} is unknown; choose from {', '.join(map(str, SHARED_MEMORY))}")
    torch_dtype, shared = TORCH_DTYPE[dtype], SHARED_MEMORY[arch]
    base = configs.choose(sizes["head_dim"], torch_dtype, shared, divmod(arch, 10))
    found = []
    for one in _candidates(named, sizes, base):
        _begin(one, "compiling")
        found.append(look_ahead(one, sizes["head_dim"], torch_dtype, arch, shared))
    return found


def _timed(
    named: list[str], sizes: dict[str, int], dtype: str, delta: str, cap: float, device: str
) -> tuple[list["Candidate"], "Key"]:
    from dmabench.cli.kernels_input import choose_device

    where = choose_device(device)
    if not where.startswith("cuda"):
        say("nothing could be tuned: timing Triton kernels needs a CUDA device, and torch sees none", "red")
        say("--dry-run compiles the candidates for a card that is not here", "dim")
        sys.exit(3)
    import torch

    from dmabench.kernels.dma_triton import configs
    from dmabench.timing import tuning
    from dmabench.timing.clock import make_clock
    from dmabench.workload.cells import Shape
    from dmabench.workload.inputs import TORCH_DTYPE, Inputs

    target, torch_dtype = torch.device(where if ":" in where else f"{where}:0"), TORCH_DTYPE[dtype]
    major, minor = torch.cuda.get_device_capability(target)
    shared = configs.shared_memory(target)
    # The table's own, whatever was tuned before: what is compared with must not depend on it.
    base = configs.choose(sizes["head_dim"], torch_dtype, shared, (major, minor))
    rest = {name: size for name, size in sizes.items() if name != "window"}
    shape = Shape(pass_="fwd+bwd", level="kernel", dtype=dtype, seed=0, device=str(target), **rest)
    with configs.forced(base):
        work = tuning.Work(Inputs(shape), delta, sizes["window"])
    ready = []
    for one in _candidates(named, sizes, base):
        _begin(one, "compiling")
        ready.append(tuning.look_ahead(one, sizes["head_dim"], torch_dtype, 10 * major + minor, shared))
    found, clock = [], make_clock(str(target))
    for kernel in named:
        these = [one for one in ready if one.kernel == kernel]
        told = lambda text: say(text, "dim")  # noqa: E731
        found += tuning.measure(work, base, these, clock, cap, torch_dtype, sizes["head_dim"], told)
    return found, configs.key_of(sizes["head_dim"], torch_dtype, target)


def _begin(one: "Candidate", what: str) -> None:
    from dmabench.timing.tuning import words

    say(f"{one.kernel} {words(one.config)}: {what}", "dim")


def _show(found: list["Candidate"], as_json: bool) -> None:
    from dmabench.tables.tuning import as_row, drawn

    def write(console: Any) -> None:
        if as_json:
            for one in found:
                console.file.write(json.dumps(as_row(one)) + "\n")
        else:
            console.print(drawn(found))

    to_stdout(write)


def _keep(best: dict[str, "Candidate"], key: "Key", shape: dict[str, Any], store: bool) -> None:
    from datetime import UTC, datetime

    from dmabench.kernels.dma_triton import configs, tuned
    from dmabench.timing.tuning import words

    for kernel, one in best.items():
        say(f"{kernel}: {'the default' if one.is_default else words(one.config)}, {one.ms:.4g} ms")
    if not store:
        return
    about = {"shape": shape, "utc": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        for kernel, one in best.items():
            tuned.store(key, {kernel: one.config}, {**about, "ms": one.ms})
    except OSError as error:
        raise Refusal(
            f"the winners cannot be stored ({error.strerror or error}): name a folder with DMABENCH_CACHE"
        ) from error
    configs.forget()
    say(f"kept in {tuned.path().name} for {key.device}, triton {key.triton}, {key.dtype}, D up to {key.head_dim}")


def _table_of_auto(folder: str, output: str | None) -> None:
    from dmabench.store.runs import run_paths
    from dmabench.summaries.fastest import cells_of, module_of

    root = Path(folder).expanduser()
    if not root.is_dir():
        raise Refusal(f"--from-rows {folder}: there is no such folder; results/reference holds the committed runs")
    cells = cells_of(run_paths(root))
    if not cells:
        raise Refusal(
            f"--from-rows {folder}: no run there timed two backends of dma that auto chooses among, correctly"
        )
    # The checkout that this package is, whose history tells the sources of a commit.
    text = module_of(cells, Path(__file__).resolve().parents[2])
    if output is None:
        to_stdout(lambda console: print(text, end="", file=console.file))
        return
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise Refusal(f"--output {output}: cannot be written ({error.strerror or error})") from error
    say(f"{len(cells)} cells of {len({cell.run for cell in cells})} runs are in {output}")
