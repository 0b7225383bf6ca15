"""What `dmabench ablate` does by default and under each preset."""

from typing import Any

from dmabench.tasks import language_presets, mqar_presets
from dmabench.tasks.task import Preset

ALL = "v-learned,k-learned,random,constant,recency,shared,no-bias,no-mask,linear,swa,mha"
FEW = "v-learned,random,constant,shared,no-bias,mha"
LANGUAGE = ("size", "data", "tokens", "heldout_tokens", "seqlen", "window", "step_tokens", "lr")
RECALL = ("pairs", "vocab", "d_model", "steps", "test_examples", "step_tokens", "lr")
COMMON: dict[str, Any] = {"variant": ALL, "tested": "own,mha,swa,dma,no-mask,no-bias", "seed": 0}


def _block(on: str, defaults: dict[str, Any], names: tuple[str, ...], **own: Any) -> dict[str, Any]:
    """Settings of one subject, as the task that it is has them."""
    return COMMON | {name: defaults[name] for name in names if name in defaults} | {"on": on} | own


CPU = _block("language", language_presets.CPU, LANGUAGE, variant="v-learned,random,constant,no-bias,mha", vocab=512)
CPU_RECALL = _block("mqar", mqar_presets.CPU, RECALL, window=16)
CUDA = _block("language", language_presets.CUDA, LANGUAGE, window=512)
CUDA_RECALL = _block("mqar", mqar_presets.CUDA, RECALL, window=128)
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

PRESETS = {
    "quick": Preset(
        "made-up text (eleven variants) and 16 pairs (six), models of 0.1M parameters; minutes on two CPU cores",
        (CPU | {"variant": ALL, "tokens": 60_000}, CPU_RECALL | {"variant": FEW}),
    ),
    "h100": Preset(
        "30M parameters on 40M tokens of text in sequences of 2048, window 512, and recall of 128 pairs with as many "
        "keys; a few minutes a cell",
        (CUDA, CUDA_RECALL),
    ),
}
