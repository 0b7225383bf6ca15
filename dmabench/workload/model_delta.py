"""Importance of a trained model's layer on a text, as a distribution that backends are timed with.

`python -m dmabench.workload.model_delta` runs a model in its own process: the parent of a run makes no CUDA context.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmabench.errors import Refusal

if TYPE_CHECKING:
    from dmabench.tasks.text_importance import Shape

PREFIX = "model:"
COMMAND = (sys.executable, "-P", "-m", "dmabench.workload.model_delta")


@dataclass(frozen=True)
class ModelDelta:
    """What `--delta model:DIR:LAYER` asks for."""

    model: str
    layer: int
    text: str
    reach: int | None
    """Tokens that the model's positions reach to."""

    def label(self) -> str:
        """As rows tell it, with hashes of weights and text; no commas, which part deltas.

        Raises:
            ValueError: no such model or text.
        """
        from dmabench.tasks.text_importance import labels

        model, text = labels(self.model, self.text)
        return f"{PREFIX}{model}:{self.layer}:{text}".replace(",", "_")

    def write(self, out: Path, tokens: int, device: str) -> str | None:
        """Runs the model over so many tokens and saves [G, tokens] as .npy; what of the text was skipped.

        Raises:
            Refusal: what the model or the text refuses; its process died.
        """
        request = json.dumps({**asdict(self), "out": str(out), "tokens": tokens, "device": device})
        done = subprocess.run(COMMAND, input=request, capture_output=True, text=True, check=False)
        try:
            answer = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise Refusal(f"--delta {PREFIX}{self.model}: the model could not be run: {last}") from None
        if answer["refusal"]:
            raise Refusal(answer["refusal"])
        problems: str | None = answer["problems"]
        return problems


def parse(word: str, text: str) -> "tuple[ModelDelta, Shape]":
    """The delta that `model:DIR` or `model:DIR:LAYER` asks for (by default the middle one of the layers with dma), and
    the shape of that layer.

    Raises:
        ValueError: no such model, text or layer, or no dma in it.
    """
    from dmabench.tasks.text_importance import check, check_layers

    name, _, last = word.removeprefix(PREFIX).rpartition(":")
    if not (name and last.isdigit()):
        name, last = word.removeprefix(PREFIX), ""
    shape = check(name, text, None)
    layer = int(last) if last else shape.layers[len(shape.layers) // 2]
    check_layers(name, shape, [layer])
    return ModelDelta(name, layer, text, shape.reach), shape


def main() -> None:
    """Answers one request on stdin."""
    import numpy

    from dmabench.tasks.text_importance import read

    asked = json.load(sys.stdin)
    answer: dict[str, str | None] = {"refusal": None, "problems": None}
    try:
        found = read(asked["model"], asked["text"], asked["tokens"], asked["device"], layers=[asked["layer"]])
        (delta,) = found.deltas.values()
        numpy.save(asked["out"], delta.numpy())
        answer["problems"] = found.problems
    except ValueError as error:
        answer["refusal"] = str(error)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
