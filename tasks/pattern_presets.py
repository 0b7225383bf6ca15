"""What `dmabench patterns` does by default and under each preset: windows below and above what can be asked for."""

from typing import Any

from dmabench.tasks.task import Preset

ALL = "mha,swa,mla,nsa,dma"
COMMON: dict[str, Any] = {
    "pattern": "copy,select,induce",
    "attention": ALL,
    "layers": 2,
    "heads": 1,
    "positions": "rope",
    "short_conv": 4,
    "vocab": 2048,
    "seed": 0,
}
CPU: dict[str, Any] = COMMON | {
    "distance": 24,
    "copied": 8,
    "marked": 6,
    "pairs": 8,
    "test_examples": 256,
    "d_model": 64,
    "lr": "5e-3",
    "step_tokens": 4096,
    "steps": 300,
}
CUDA: dict[str, Any] = COMMON | {
    "distance": 192,
    "copied": 64,
    "marked": 64,
    "pairs": 64,
    "test_examples": 256,
    "d_model": 128,
    "lr": "3e-3",
    "step_tokens": 32768,
    "steps": 2000,
}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

NARROW: dict[str, Any] = {"attention": "swa,dma"}
LARGE: dict[str, Any] = CUDA | {
    "distance": 1024,
    "copied": 512,
    "marked": 512,
    "pairs": 512,
    "vocab": 8192,
    "window": 512,
    "steps": 20000,
    "lr": "1e-3,3e-3",
    "seed": "0,1,2",
}

PRESETS = {
    "quick": Preset(
        "6 or 8 tokens or pairs in 24 to 64, windows of 4 and 16: minutes on two CPU cores",
        ({**CPU, "window": 16}, {**CPU, **NARROW, "window": 4}),
    ),
    # In the order of what their cells decide: the claims compare dma with mha, our own predictions all of them.
    "h100": Preset(
        "64 tokens or pairs in 256 to 512 tokens, three seeds; windows of a quarter to thrice as many",
        tuple(
            {**CUDA, "seed": "0,1,2", **own}
            for own in (
                {"attention": "mha,dma", "window": 128},
                {"attention": "swa,mla", "window": 128},
                {**NARROW, "window": "16,32,64,192"},
                {"attention": "nsa", "window": 128},
            )
        ),
    ),
    "paper": Preset(
        "512 tokens or pairs in 2048 to 4096 tokens with the paper's window of 512, and others; three seeds; a day",
        (LARGE, {**LARGE, **NARROW, "window": "128,1024"}),
    ),
}
