"""What `dmabench ablate` does by default and under each preset."""

from typing import Any

from dmabench.tasks import language_presets, mqar_presets
from dmabench.tasks.task import Preset

ALL = "v-learned,k-learned,random,constant,recency,shared,no-bias,no-mask,linear,swa,mha"
FEW = "v-learned,random,constant,shared,no-bias,mha"
COMMON: dict[str, Any] = {"on": "language", "tested": "own,mha,swa,dma,no-mask,no-bias", "seed": 0}
TEXT = ("size", "data", "tokens", "heldout_tokens")
PAIRS = ("pairs", "d_model", "steps", "test_examples")


def _sizes(text: dict[str, Any], pairs: dict[str, Any]) -> dict[str, Any]:
    """What is trained, and on how much: of each subject as the task that it is has it."""
    return COMMON | {name: text[name] for name in TEXT} | {name: pairs[name] for name in PAIRS}


CPU = _sizes(language_presets.CPU, mqar_presets.CPU) | {"variant": "v-learned,random,constant,no-bias,mha"}
CUDA = _sizes(language_presets.CUDA, mqar_presets.CUDA) | {"variant": ALL}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

SMALL_SIZES, SMALL_WIDTH = ("tiny", "0.5M", "1.4M"), 64
MISSING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "language": (
        {"seqlen": 128, "window": 32, "lr": 1e-2, "step_tokens": 1024},
        {"seqlen": 2048, "window": 512, "lr": 3e-3, "step_tokens": 65536},
    ),
    "mqar": (
        {"lr": 3e-3, "step_tokens": 4096, "vocab": 2048},
        {"lr": 2e-3, "step_tokens": 32768, "vocab": 8192},
    ),
}
"""Settings that both subjects have, for small models and for others, where none are given; from train's and mqar's."""


def fill(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of MISSING that they lack; a window that was not given follows from a length that was."""
    small = settings["size"] in SMALL_SIZES or (settings["d_model"] or SMALL_WIDTH + 1) <= SMALL_WIDTH
    missing = dict(MISSING[settings["on"]][0 if small else 1])
    if settings["seqlen"] is not None:
        missing.pop("window", None)
    return settings | {name: value for name, value in missing.items() if settings[name] is None}


PRESETS = {
    "quick": Preset(
        "made-up text (eleven variants) and 16 pairs (six), models of 0.1M parameters; minutes on two CPU cores",
        ({"on": "language", "variant": ALL, "tokens": 60_000}, {"on": "mqar", "variant": FEW}),
    ),
    "h100": Preset(
        "30M parameters on 40M tokens of text in sequences of 2048, window 512, and recall of 128 pairs with as many "
        "keys; a few minutes a cell",
        (CUDA, CUDA | {"on": "mqar"}),
    ),
}
