"""What `dmabench step` does by default and under each preset."""

from typing import Any

from dmabench.tasks.task import Preset

COMMON: dict[str, Any] = {"nsa": "equal", "recompute": "auto", "steps": 10, "seed": 0}
CPU: dict[str, Any] = COMMON | {"size": "tiny", "attention": "mha,swa,dma", "seqlen": "512,2k", "step_tokens": 2048}
CUDA: dict[str, Any] = COMMON | {
    "size": "30M",
    "attention": "mha,swa,mla,nsa,dma",
    "seqlen": "2k,8k",
    "step_tokens": "32k",
}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

PRESETS = {
    "quick": Preset("models of 0.1M parameters, three steps; seconds on a CPU", ({**CPU, "steps": 3},)),
    "h100": Preset(
        "30M parameters at 2k and 8k with windows of 512, five attentions; Qwen3-1.7B's sizes at 2k, 8k and 32k, MHA "
        "and DMA; minutes",
        (
            CUDA | {"window": 512},
            CUDA | {"size": "1.7B", "attention": "mha,dma", "seqlen": "2k,8k,32k"},
        ),
    ),
}
