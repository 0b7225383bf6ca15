"""What `dmabench mqar` does by default and under each preset."""

from typing import Any

from dmabench.tasks.task import Preset

COMMON: dict[str, Any] = {
    "power": "0.01",
    "fillers": "yes",
    "layers": 2,
    "heads": 1,
    "positions": "rope",
    "short_conv": 4,
    "seed": 0,
}
CPU: dict[str, Any] = COMMON | {
    "attention": "mha,swa,dma",
    "pairs": 16,
    "vocab": 2048,
    "examples": 0,
    "test_examples": 64,
    "curriculum": "on",
    "d_model": 64,
    "lr": "5e-3",
    "steps": 150,
    "step_tokens": 4096,
}
CUDA: dict[str, Any] = COMMON | {
    "attention": "mha,swa,mla,nsa,dma",
    "pairs": 128,
    "vocab": 8192,
    "examples": 250_000,
    "test_examples": 1000,
    "curriculum": "on",
    "d_model": 128,
    "lr": "3e-3",
    "steps": 1500,
    "step_tokens": 32768,
}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

ALL = "mha,swa,mla,nsa,dma"
QUICK: dict[str, Any] = {"attention": ALL, "pairs": 16, "seqlen": 64, "window": 16}
HARD: dict[str, Any] = {"pairs": 512, "window": 512}
SHORT: dict[str, Any] = {"pairs": 128, "seqlen": 1024}
# Learning rate by width and batch by length: those of the paper. 100 epochs of 250,000 examples.
PAPER: dict[str, Any] = {"attention": ALL, "pairs": 512, "window": 512, "examples": 250_000, "curriculum": "off"}
PAPER_LR = {32: "4e-4", 64: "3e-4", 128: "2e-4", 256: "1e-4"}
PAPER_BATCH = {1024: 64, 2048: 32, 4096: 16, 8192: 8}
EPOCHS = 100

PRESETS = {
    "quick": Preset("16 pairs in 64 tokens, five attentions, minutes on two CPU cores", (QUICK,)),
    "h100": Preset(
        "512 pairs in 2048 to 8192 tokens and 128 in 1024, five attentions; DMA and a window over its width",
        (
            {**HARD, "attention": ALL, "seqlen": "2k,4k,8k"},
            {**SHORT, "attention": ALL, "window": 512},
            {**HARD, "attention": "swa,dma", "seqlen": "4k", "window": "128,256,512,1k,2k"},
            {**SHORT, "attention": "swa,dma", "window": "32,64,128,256"},
        ),
    ),
    "paper": Preset(
        "the published figure: 250,000 examples for 100 epochs, widths 32 to 256; days",
        tuple(
            {
                **PAPER,
                "seqlen": length,
                "d_model": width,
                "lr": PAPER_LR[width],
                "batch": batch,
                "steps": EPOCHS * 250_000 // batch,
            }
            for length, batch in PAPER_BATCH.items()
            for width in PAPER_LR
        ),
    ),
}
