"""What `dmabench train` does by default and under each preset."""

from typing import Any

from dmabench.tasks.corpus import HUB_DEFAULT
from dmabench.tasks.task import Preset

COMMON: dict[str, Any] = {
    "text_field": "text",
    "strict": "no",
    "stage2_tokens": 0,
    "positions": "rope",
    "short_conv": 0,
    "nsa": "equal",
    "seed": 0,
}
CPU: dict[str, Any] = COMMON | {
    "size": "tiny",
    "attention": "mha,swa,dma",
    "data": "synthetic",
    "seqlen": 128,
    "window": 32,
    "tokens": 120_000,
    "step_tokens": 1024,
    "lr": "1e-2",
    "heldout_tokens": 16_384,
}
CUDA: dict[str, Any] = COMMON | {
    "size": "30M",
    "attention": "mha,swa,mla,nsa,dma",
    "data": HUB_DEFAULT,
    "seqlen": "2k",
    "tokens": 40_000_000,
    "step_tokens": "64k",
    "lr": "3e-3",
    "heldout_tokens": 1_000_000,
}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

# The paper's pretraining of 1.7B parameters (arXiv 2508.02124): tokens, lengths and bases of rotary positions. Its
# learning rate and step are those of its scaling law at that size; what the second stage's rate was is not told.
PAPER: dict[str, Any] = {
    "size": "1.7B",
    "attention": "mha,nsa,dma",
    "window": "2k",
    "nsa": "paper",
    "data": HUB_DEFAULT,
    "tokenizer": "Qwen/Qwen3-1.7B",
    "seqlen": "2k",
    "tokens": 32_000_000_000,
    "rope_base": "1e4",
    "stage2_tokens": 8_000_000_000,
    "stage2_seqlen": "8k",
    "stage2_rope_base": "1e5",
    "step_tokens": 1_000_000,
    "lr": "1e-3",
    "heldout_tokens": 4_000_000,
}

PRESETS = {
    "quick": Preset(
        "made-up text, models of 0.1M parameters, under a minute on two CPU cores",
        ({**CPU, "attention": "mha,dma", "tokens": 60_000},),
    ),
    "h100": Preset(
        "30M parameters, five attentions, 40M tokens in sequences of 2048, window 512; minutes",
        ({"size": "30M", "attention": "mha,swa,mla,nsa,dma", "seqlen": "2k", "window": 512, "tokens": 40_000_000},),
    ),
    "paper-1.7b": Preset("1.7B parameters, 32B tokens at 2048, then 8B at 8192; weeks: see --dry-run", (PAPER,)),
}
