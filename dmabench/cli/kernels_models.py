"""`dmabench kernels --delta model:DIR --text FILE`: what it means for the other options, and the files it takes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dmabench.errors import Refusal
from dmabench.workload.cells import Cell
from dmabench.workload.model_delta import PREFIX, ModelDelta, parse

SHAPE = ("heads", "kv_heads", "head_dim", "window")
"""Options that take the model's own values where they are not given."""
SEQLEN = 8192
"""Default length at most; the model's positions may end before."""


def take_models(given: dict[str, str | None], text: str | None, preset: str | None) -> dict[str, ModelDelta]:
    """Labels of the models that --delta names, which replace them in `given`; the shape of their layer becomes that of
    the run where no option says otherwise.

    Raises:
        Refusal: a model without a text, or the other way round; a preset, which has shapes of its own; models of unlike
            shapes; another number of key/value heads.
    """
    words = [word.strip() for word in (given["delta"] or "").split(",")]
    if not any(word.startswith(PREFIX) for word in words):
        if text is not None:
            raise Refusal("--text is what a model reads, and --delta names none: add model:DIR there, or drop --text")
        return {}
    if text is None:
        raise Refusal("--delta model:DIR needs --text FILE, whose tokens the model gives importance to (or synthetic)")
    if preset is not None:
        raise Refusal(f"--preset {preset} has shapes of its own, and so has a model: leave out one of the two")
    models: dict[str, ModelDelta] = {}
    sizes: dict[str, tuple[str, int]] = {}
    reach = SEQLEN
    try:
        for at, word in enumerate(words):
            if not word.startswith(PREFIX):
                continue
            asked, shape = parse(word, text)
            words[at] = asked.label()
            models[words[at]] = asked
            reach = min(reach, shape.reach or reach)
            for name in SHAPE:
                own = getattr(shape, name)
                before, value = sizes.setdefault(name, (asked.model, own))
                if value != own and (given[name] is None or name == "kv_heads"):
                    flag = f"--{name.replace('_', '-')}"
                    raise Refusal(
                        f"{before} has {flag} {value} and {asked.model} {own}: time them in runs of their own"
                    )
    except ValueError as error:
        raise Refusal(str(error)) from error
    kv_heads = str(sizes["kv_heads"][1])
    if given["kv_heads"] not in (None, kv_heads):
        raise Refusal(
            f"--kv-heads {given['kv_heads']}: {sizes['kv_heads'][0]} has {kv_heads}, a delta for each of them"
        )
    given["delta"] = ",".join(words)
    for name, (_, value) in sizes.items():
        given[name] = given[name] or str(value)
    given["seqlen"] = given["seqlen"] or str(reach)
    return models


def check_lengths(models: dict[str, ModelDelta], cells: Iterable[Cell]) -> None:
    """Refuses cells that are longer than a model's positions reach."""
    for cell in cells:
        asked = models.get(cell.delta or "")
        if asked is not None and asked.reach is not None and cell.shape.key_len > asked.reach:
            raise Refusal(
                f"--seqlen {cell.shape.seqlen} ({cell.shape.pass_}) needs {cell.shape.key_len} tokens, and "
                f"{asked.model} has positions for {asked.reach}: take shorter lengths"
            )


@contextmanager
def written(models: dict[str, ModelDelta], cells: Sequence[Cell], device: str) -> Iterator[dict[str, str]]:
    """The models' importance in files, label -> path, as long as the context lasts.

    Raises:
        Refusal: a text that is too short for the longest cell, and whatever else a model refuses.
    """
    from dmabench.cli.output import say

    with TemporaryDirectory() as folder:
        files = {}
        for number, (label, asked) in enumerate(models.items()):
            tokens = max((cell.shape.key_len for cell in cells if cell.delta == label), default=0)
            if not tokens:  # no backend of dma
                continue
            say(f"reading {tokens} tokens of {asked.text} with {asked.model}", "dim")
            path = Path(folder) / f"{number}.npy"
            problems = asked.write(path, tokens, device)
            if problems:
                say(f"note: {problems}", "yellow")
            files[label] = str(path)
        yield files
