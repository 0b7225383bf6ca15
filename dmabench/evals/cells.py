"""The cells of an evaluation: each task on each model, with each window and number of examples in the prompt."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvalCell:
    """One model on one task or group of tasks."""

    model: str
    """Its label in rows and tables."""
    weights: str
    window: int | None
    """None: what the model was trained with."""
    task: str
    shots: int | None
    """Examples in the prompt; None: what the task says, else 0."""
    data: str
    """sample, hub, made (RULER), or the name of the folder that its files come from."""
    limit: int | None
    lengths: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """A hash of the settings: the same in every run of the same evaluation."""
        return hashlib.sha1(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The model and its window, as tables name it."""
        return variant(self.model, self.window)


def variant(model: str, window: int | None) -> str:
    """How tables name a model that is scored with another window than its own."""
    return model if window is None else f"{model} w={window}"


def labels(names: Sequence[str]) -> list[str]:
    """A short label for each model: the last parts of its path, as many as tell the models apart, and before them the
    attention of one of ours whose path does not say it."""
    parts = [tuple(Path(name).parts) if not name.startswith("untrained:") else (name,) for name in names]
    taken = [min(2, len(one)) if not Path(name).is_dir() else 1 for name, one in zip(names, parts, strict=True)]
    while True:
        found = ["/".join(one[-count:]) for one, count in zip(parts, taken, strict=True)]
        again = [at for at, one in enumerate(found) if found.count(one) > 1 and taken[at] < len(parts[at])]
        if not again:
            return [_with_attention(label, name) for label, name in zip(found, names, strict=True)]
        for at in again:
            taken[at] += 1


def _with_attention(label: str, name: str) -> str:
    try:
        config = json.loads((Path(name).expanduser() / "config.json").read_text())
        attention = config["attention"] if config["model_type"] == "dmabench" else label
    except (OSError, ValueError, KeyError, TypeError):
        return label  # what is wrong with it is said where it is loaded
    return label if str(attention) in label else f"{attention} {label}"


def make_cells(
    models: Sequence[tuple[str, str]],
    windows: Sequence[int | None],
    tasks: Sequence[tuple[str, str]],
    shots: Callable[[str], Sequence[int | None]],
    limit: int | None,
    lengths: tuple[int, ...],
) -> list[EvalCell]:
    """Every combination, model by model.

    Args:
        models: (label, hash of the weights) each.
        tasks: (name, where its data comes from) each.
        shots: the numbers of examples in the prompt, by task.
    """
    return [
        EvalCell(label, weights, window, task, shot, data, limit, lengths if data == "made" else ())
        for label, weights in models
        for window in windows
        for task, data in tasks
        for shot in shots(task)
    ]
