"""Tasks that train nothing, with the axes of the real ones, and rows made up for tests: no number here was measured."""

from typing import Any

from dmabench.tasks.task import Axis, Cost, Task

WINDOWED = ("swa", "nsa", "dma")
MODEL = (
    Axis("attention", str, "", choices=("mha", "swa", "mla", "nsa", "dma")),
    Axis("window", int, "", only=WINDOWED),
    Axis("d_model", int, ""),
    Axis("layers", int, ""),
    Axis("positions", str, ""),
    Axis("mla_latent", int, "", only=("mla",)),
    Axis("nsa_topk", int, "", only=("nsa",)),
    Axis("lr", float, ""),
    Axis("steps", int, ""),
    Axis("seed", int, ""),
)


def task(name: str, title: str, axes: tuple[Axis, ...], control: float, columns: tuple[str, ...] = ()) -> Task:
    return Task(
        name=name,
        title=title,
        about="",
        examples=(),
        axes=axes + MODEL,
        defaults={},
        presets={},
        refusal=lambda settings: None,
        cost=lambda settings: Cost(0, 0, 0),
        run=lambda settings, tools: [],
        control=control,
        columns=columns,
    )


MQAR = task("mqar", "Recall", (Axis("pairs", int, ""), Axis("seqlen", int, "")), 0.95, ("pairs_kept", "density"))
PATTERNS = task(
    "patterns",
    "Patterns",
    (Axis("pattern", str, "", choices=("copy", "select", "induce")), Axis("seqlen", int, "")),
    0.95,
)
NEEDLE = task(
    "needle",
    "Needle",
    (
        Axis("train_len", int, ""),
        Axis("test_len", int, "", swept=False),
        Axis("depth", int, "", swept=False),
        Axis("kind", str, "", choices=("single", "multi-key"), swept=False),
    ),
    0.9,
)
OWN = {"window": WINDOWED, "mla_latent": ("mla",), "nsa_topk": ("nsa",)}


def made_up(of: Task, attention: str, accuracy: float | None, **fields: Any) -> dict[str, Any]:
    """A row as the store holds it: PASSED, 1000 answers, every axis of the task filled in."""
    row: dict[str, Any] = {"task": of.name, "attention": attention, "status": "PASSED", "reason": None, "run": "r"}
    row |= {"device": "Made-up GPU", "lr": 1e-3, "steps": 100, "seed": 0, "d_model": 64, "layers": 2}
    row |= {"positions": "rope", "window": 64, "mla_latent": 16, "nsa_topk": 4}
    row |= {"mqar": {"pairs": 512, "seqlen": 2048}, "patterns": {"pattern": "copy", "seqlen": 256}}.get(of.name, {})
    if of.name == "needle":
        row |= {"train_len": 1024, "test_len": 1024, "kind": "single", "depth": 0}
    row |= fields
    row |= {name: None for name, kinds in OWN.items() if attention not in kinds}
    if accuracy is not None:
        total = fields.get("total", 1000)
        row |= {"accuracy": accuracy, "correct": round(accuracy * total), "total": total, "chance": 0.001}
        row.setdefault("validation_accuracy", accuracy)
    row["cell"] = f"{attention}-{row['seed']}-{row['lr']}-{row['window']}-{row['d_model']}"
    return row
