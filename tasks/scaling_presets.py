"""What `dmabench scaling` does by default and under each preset."""

from typing import Any

from dmabench.tasks import language_presets
from dmabench.tasks.corpus import HUB_DEFAULT
from dmabench.tasks.task import Preset

CPU: dict[str, Any] = language_presets.CPU | {
    "size": "tiny,0.5M,1.4M",
    "attention": "mha,dma",
    "tokens": 120_000,
    "lr": "1e-3,3e-3,1e-2",
    "vocab": 512,
}
CUDA: dict[str, Any] = language_presets.CUDA | {"size": "7M,13M,30M", "attention": "mha,dma", "lr": "1e-3,2e-3,4e-3"}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

# The paper's scaling law (arXiv 2508.02124 v6, Table 4): steps, tokens a step, learning rates, windows, and NSA's
# sizes. It tells neither the length of sequences nor the tokenizer: 2048 is that of its pretraining, and one
# vocabulary makes losses of all sizes comparable.
GRID = {
    # size: steps, tokens a step, learning rate, window
    "80M": (13_500, 128_000, "3e-3", 1024),
    "200M": (20_800, 192_000, "2e-3", 1024),
    "680M": (35_000, 392_000, "1e-3", 1024),
    "1.7B": (40_000, 1_000_000, "1e-3", 2048),
}
PAPER_LENGTH = 2048


def _paper(size: str) -> dict[str, Any]:
    steps, step_tokens, lr, window = GRID[size]
    batch = step_tokens // PAPER_LENGTH  # whole sequences: a step is up to one sequence short of the paper's
    return {
        "size": size,
        "attention": "mha,swa,mla,nsa,dma",
        "data": HUB_DEFAULT,
        "vocab": 32_768,
        "seqlen": PAPER_LENGTH,
        "tokens": steps * batch * PAPER_LENGTH,
        "batch": batch,
        "lr": lr,
        "window": window,
        "nsa": "paper",
        "heldout_tokens": 4_000_000,
    }


PRESETS = {
    "quick": Preset(
        "made-up text, three sizes from 0.1M to 1.4M parameters, MHA and DMA; minutes on two CPU cores", (CPU,)
    ),
    "h100": Preset(
        "7M, 13M and 30M parameters, MHA and DMA, 40M tokens in sequences of 2048, window 512; minutes a cell",
        ({**CUDA, "window": 512, "lr": "1e-3,2e-3,4e-3"},),
    ),
    "paper": Preset(
        "the paper's grid: 80M to 1.7B parameters on 1.7B to 40B tokens, five attentions; months: see --dry-run",
        tuple(_paper(size) for size in GRID),
    ),
}
