"""What the words of `dmabench eval` mean: models, tasks and where their data comes from. What can be refused is refused
here, before anything heavy is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmabench.errors import Refusal
from dmabench.tasks.downstream import catalogue, checkpoints, local_data
from dmabench.workload.sweeps import parse_sweep

DEFAULT_MODEL = "untrained:tiny"


@dataclass(frozen=True)
class Asked:
    """What the command line asked for, checked as far as can be without importing torch."""

    models: list[str]
    tasks: list[tuple[str, str]]
    """(name, where its data comes from: sample, made, hub or the folder's name) each."""
    shots: list[int | None]
    windows: list[int | None]
    lengths: tuple[int, ...]
    data: Path | None
    left_out: list[str]
    """Tasks of a suite that the folder cannot serve, with what it lacks."""

    def shots_of(self, task: str) -> list[int | None]:
        """The numbers of examples that make a difference to a task."""
        return self.shots if catalogue.takes_examples(task) else [None]

    @property
    def hub(self) -> bool:
        """Does a task need what is not on this machine?"""
        return any(where == "hub" for _, where in self.tasks)


def understand(
    models: Sequence[str],
    tasks: str | None,
    suite: str | None,
    shots: str | None,
    windows: str | None,
    lengths: str | None,
    data: str | None,
) -> Asked:
    """Everything that the words ask for. Raises Refusal for what cannot be."""
    try:
        folder = None if data is None else local_data.find_folder(data)
        shot_numbers: list[int | None] = [None] if shots is None else list(parse_sweep(shots, "--shots", least=0))
        names, left_out = _tasks(tasks, suite, folder, any(shot_numbers))
        sources = [(name, _where(name, folder)) for name in names]
        _check_ruler([name for name, where in sources if where == "made"])
        return Asked(
            _models(models, [where for _, where in sources]),
            sources,
            shot_numbers,
            [None] if windows is None else list(parse_sweep(windows, "--window")),
            _lengths(lengths),
            folder,
            left_out,
        )
    except ValueError as error:
        raise Refusal(str(error)) from error


def _models(given: Sequence[str], sources: list[str]) -> list[str]:
    if not given and set(sources) == {"sample"}:
        return [DEFAULT_MODEL]
    if not given:
        raise Refusal(
            "no model: name a checkpoint's folder or a model on the hub with --model (several times for several), or "
            f"try {DEFAULT_MODEL}, which has random weights"
        )
    twice = [name for name in dict.fromkeys(given) if given.count(name) > 1]
    if twice:
        raise Refusal(f"--model {twice[0]} is there twice: its scores would be the same")
    for name in given:
        checkpoints.check_name(name)
        if name.startswith(checkpoints.UNTRAINED):
            _check_untrained(name)
    return list(given)


def _check_untrained(name: str) -> None:
    """Presets and attentions are in modules that import torch: only the word's form is checked here."""
    parts = name.removeprefix(checkpoints.UNTRAINED).split(":")
    if not parts[0] or len(parts) > 2:
        raise Refusal(
            f"--model {name}: write untrained:PRESET or untrained:PRESET:ATTENTION, such as untrained:tiny:mha"
        )


def _tasks(text: str | None, suite: str | None, folder: Path | None, with_shots: bool) -> tuple[list[str], list[str]]:
    if (text is None) == (suite is None):
        both = "--tasks and --suite are two ways to name tasks: leave one out"
        none = (
            f"no tasks: name some with --tasks or --suite ({', '.join(catalogue.SUITES)}); --tasks sample needs no data"
        )
        raise Refusal(both if text is not None else none)
    if suite is not None:
        if suite not in catalogue.SUITES:
            near = catalogue.nearest(suite, list(catalogue.SUITES))
            raise Refusal(f"--suite {suite!r} is unknown; choose from {', '.join(catalogue.SUITES)}{near}")
        return _servable(list(catalogue.SUITES[suite]), folder, with_shots)
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if not words:
        raise Refusal("--tasks names no task; write lambada_openai,mmlu or sample")
    names = [name for word in words for name in (catalogue.SAMPLES if word == "sample" else [word])]
    known = catalogue.known()
    for name in names:
        _check_task(name, known, folder, with_shots)
    return list(dict.fromkeys(names)), []


def _check_task(name: str, known: list[str], folder: Path | None, with_shots: bool) -> None:
    if name in catalogue.SAMPLES or name in catalogue.RULER_MADE:
        return
    if folder is None:
        return  # any task of lm-eval's, whose index is read later
    near = catalogue.nearest(name, known)
    if name in (*catalogue.RULER, "ruler"):
        raise Refusal(
            f"{name} fetches texts that no data folder has: leave --data out, or take {', '.join(catalogue.RULER_MADE)}"
        )
    if name not in known:
        raise Refusal(
            f"no task {name!r} can be read from a folder{near} (`dmabench eval --data {folder}` lists those that this "
            "one serves; without --data every task of lm-eval's can be named)"
        )
    missing = _missing(name, folder, with_shots)
    if missing:
        raise Refusal(
            f"{folder} cannot serve {name}{' with examples in the prompt' if with_shots else ''}: it has no "
            f"{_some(missing)}. `dmabench eval --data {folder}` lists what it serves"
        )


def _check_ruler(names: list[str]) -> None:
    """RULER's tasks make their texts with libraries that lm-eval does not install by itself."""
    if names and (lacks := catalogue.ruler_lacks()):
        absent = f"{' and '.join(lacks)}, which {'is' if len(lacks) == 1 else 'are'} not installed"
        raise Refusal(
            f"RULER's tasks ({_some(names)}) make their texts with {absent}: pip install 'lm-eval[ruler]', or leave "
            "these tasks out"
        )


def _servable(names: list[str], folder: Path | None, with_shots: bool) -> tuple[list[str], list[str]]:
    """A suite without what the folder lacks."""
    if folder is None:
        return names, []
    kept, left_out = [], []
    for name in names:
        if name in catalogue.RULER_MADE:
            kept.append(name)
        elif name in catalogue.RULER:
            left_out.append(f"{name} (it fetches texts)")
        elif missing := _missing(name, folder, with_shots):
            left_out.append(f"{name} (no {_some(missing)})")
        else:
            kept.append(name)
    if not kept:
        raise Refusal(f"{folder} serves no task of the suite: {'; '.join(left_out)}")
    return kept, left_out


def _missing(name: str, folder: Path, with_shots: bool) -> tuple[str, ...]:
    found = local_data.serve(folder, name)
    return tuple(dict.fromkeys(found.missing + (found.fewshot_missing if with_shots else ())))


def _some(files: Sequence[str]) -> str:
    return ", ".join(files) if len(files) <= 6 else f"{', '.join(files[:5])} and {len(files) - 5} more"


def _where(name: str, folder: Path | None) -> str:
    if name in catalogue.SAMPLES:
        return "sample"
    if name in catalogue.RULER_MADE or name in catalogue.RULER or name == "ruler":
        return "made"
    return folder.resolve().name if folder is not None else "hub"


def _lengths(text: str | None) -> tuple[int, ...]:
    lengths = (4096,) if text is None else tuple(parse_sweep(text, "--lengths"))
    unknown = [length for length in lengths if length not in catalogue.RULER_LENGTHS]
    if unknown:
        known = ", ".join(f"{length // 1024}k" for length in catalogue.RULER_LENGTHS)
        raise Refusal(f"--lengths: lm-eval's RULER has no {unknown[0]} tokens; choose from {known}")
    return lengths
