"""A task as another package would bring it, in one file: it learns nothing, and does what its axis `fate` says."""

import json
import os
import signal
import time
from typing import Any

from dmabench.tasks.task import Axis, Cost, Preset, Progress, Task, Tools

AXES = (
    Axis("attention", str, "Kinds of attention.", choices=("mha", "swa", "dma")),
    Axis("window", int, "Keys a query may attend to.", least=1, only=("swa", "dma")),
    Axis("lr", float, "Learning rates.", least=0),
    Axis("lengths", int, "Lengths to test at.", least=1, swept=False),
    Axis("fillers", bool, "Random tokens between."),
    Axis("fate", str, "What becomes of dma's cells."),
    Axis("steps", int, "Steps of training.", least=1),
    Axis("seed", int, "Seeds.", least=0),
)
DEFAULTS = {
    "attention": "mha,dma",
    "window": "8,16",
    "lr": "1e-3",
    "fillers": True,
    "fate": "well",
    "steps": "20",
    "seed": "0",
}


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"lengths": settings["lengths"] or (4 * settings["steps"],)}


def refusal(settings: dict[str, Any]) -> str | None:
    shortest = min(settings["lengths"])
    if settings["window"] and settings["window"] > shortest:
        return f"window {settings['window']} covers all {shortest} tokens: take --window {shortest} or less"
    return None


def run(settings: dict[str, Any], tools: Tools) -> list[dict[str, Any]]:
    saved = tools.folder / "checkpoint.json"
    first = json.loads(saved.read_text()) if saved.exists() else 0
    steps, fate = settings["steps"], settings["fate"] if settings["attention"] == "dma" else "well"
    if fate == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fate == "fails":
        raise RuntimeError("no such luck")
    if fate == "starves":
        raise MemoryError("needs 10 TiB")
    if fate == "hangs":
        time.sleep(600)
    step = first
    try:
        for step in range(first, steps):
            accuracy = step / steps
            tools.progress(Progress("train", step, steps, loss=2.0, accuracy=accuracy, tokens_per_s=12345.0))
            if fate == "slow" and not first:
                time.sleep(0.05)
                if step == 5:
                    (tools.folder / "started").touch()
            if fate == "ctrl-c" and step == 10 > first:
                signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        saved.write_text(json.dumps(step))
        raise
    saved.write_text(json.dumps(steps))
    told = {"device_told": tools.device, "compiled": tools.compile, "first_step": first, "stopped": "finished"}
    if tools.time_ms is not None:
        told["infer_ms"] = tools.time_ms(lambda: time.sleep(0.002))
    score = {"accuracy": 0.95, "correct": 95, "total": 100, "chance": 0.1, "validation_accuracy": 0.9, "loss": 0.5}
    return [{"kind": f"{length} tokens", "tokens": 7, **score, **told} for length in settings["lengths"]]


TASK = Task(
    name="toy",
    title="Learn nothing, quickly.",
    about="For tests of the harness.",
    examples=("dmabench toy", "dmabench toy --window 8:32:x2 --seeds 2", "dmabench toy --quick --no-fillers"),
    axes=AXES,
    defaults={"cpu": DEFAULTS, "cuda": {**DEFAULTS, "steps": "2k"}},
    presets={
        "quick": Preset("the smallest", ({"window": "8"},)),
        "two": Preset("two blocks", ({"lr": "1e-3,3e-3"}, {"seed": "0,1"})),
    },
    refusal=refusal,
    cost=lambda settings: Cost(1000 * settings["steps"], 1e9 * settings["steps"], 10.0),
    run=run,
    control=0.9,
    columns=("tokens",),
    complete=complete,
)
