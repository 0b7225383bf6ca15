"""What `dmabench mqar` does by default and under each preset, and what the recipe was found to do.

On a CPU, with torch 2.15, two layers of width 64, about 4096 tokens a step (one seed each):

- The short convolution decides whether recall is learned at all: 8 pairs in 64 tokens, vocabulary 256, lr 3e-3, MHA:
  accuracy 1.0 after 100 steps with it (with and without rotary positions), 0.15 after 600 without.
- The curriculum decides how soon, and for DMA whether: 16 pairs in 128 tokens, vocabulary 512, lr 3e-3, MHA: 350 steps
  without and 150 with it; DMA with 32 keys: 0.17 after 600 steps without and 0.995 after 200 with it.
- 512 pairs in 2048 tokens, vocabulary 2048, with the curriculum: MHA 0.999 after 100 steps (lr 4e-3) or 140 (2e-3);
  DMA with 512 keys 0.996 after 100 (lr 5e-3). Stages must keep the tokens of a step: with as few sequences as at the
  end, two, MHA had learned nothing after 129. The first must be long: at a tenth of 200 steps and lr 2e-3, nothing.
- DMA minds the learning rate where keys are as scarce as pairs: 16 pairs in 64 tokens, 16 keys: 0.78 after 300 steps at
  lr 5e-3, 0.99 after 150 at 2e-3, where MHA has 0.998 at both.
- A sliding window over its width, 8 pairs in 64 tokens: 4 keys 0.00, 8: 0.05, 16: 0.43, 32: 0.78, 64: 1.00, beside
  0.01, 0.09, 0.39, 0.76 and 1 of the pairs within its reach.
"""

from typing import Any

from dmabench.tasks.task import Preset

COMMON: dict[str, Any] = {
    "power": "0.01",
    "fillers": "yes",
    "examples": 0,
    "curriculum": "on",
    "layers": 2,
    "heads": 1,
    "positions": "rope",
    "short_conv": 4,
    "seed": 0,
}
# Steps and tokens a step are such that 512 pairs, 2048 tokens, are learned in ten minutes too.
CPU: dict[str, Any] = COMMON | {
    "attention": "mha,swa,dma",
    "pairs": 16,
    "vocab": 2048,
    "test_examples": 64,
    "d_model": 64,
    "lr": "3e-3",
    "steps": 200,
    "step_tokens": 4096,
}
CUDA: dict[str, Any] = COMMON | {
    "attention": "mha,swa,mla,nsa,dma",
    "pairs": 128,
    "vocab": 8192,
    "test_examples": 1000,
    "d_model": 128,
    "lr": "2e-3",
    "steps": 1000,
    "step_tokens": 32768,
}
DEFAULTS = {"cpu": CPU, "cuda": CUDA}

ALL = "mha,swa,mla,nsa,dma"
# Four lengths in all, since each has its own kernels of nsa to compile; the first is a fifth of the steps.
HARD: dict[str, Any] = CUDA | {
    "pairs": 512,
    "window": 512,
    "curriculum": "16+64+256",
    "steps": 2000,
    "test_examples": 256,
}
SHORT: dict[str, Any] = HARD | {"pairs": 128, "seqlen": 1024, "curriculum": "16+64"}
LENGTHS: dict[str, Any] = {"seqlen": "2k,4k,8k", "seed": "0,1,2"}
QUICK: dict[str, Any] = CPU | {"seqlen": 64, "lr": "2e-3", "steps": 300}
PAPER: dict[str, Any] = CUDA | {"attention": ALL, "pairs": 512, "window": 512, "curriculum": "off"}
PAPER_EXAMPLES, PAPER_EPOCHS = 250_000, 100
PAPER_LR = {32: "4e-4", 64: "3e-4", 128: "2e-4", 256: "1e-4"}
"""By width."""
PAPER_BATCH = {1024: 64, 2048: 32, 4096: 16, 8192: 8}
"""By length."""

PRESETS = {
    "quick": Preset(
        "16 pairs in 64 tokens: five attentions, and a window and DMA over their width; minutes on two CPU cores",
        ({**QUICK, "attention": ALL, "window": 16}, {**QUICK, "attention": "swa,dma", "window": "8,32,48"}),
    ),
    # 66 million tokens a cell at most. Steps and learning rate are the same in all blocks: a cell without a control of
    # its own settings says nothing. The blocks are in the order of what their cells decide, so that a run that is cut
    # off has decided something: every claim needs mha and dma, then its rivals.
    "h100": Preset(
        "512 pairs in 2k to 8k tokens, 128 in 1k, five attentions, three seeds; windows of 1/4 to 4 keys a pair; then "
        "other learning rates for all",
        (
            {**HARD, **LENGTHS, "attention": "mha,dma"},
            {**HARD, **LENGTHS, "attention": "swa,mla"},
            {**HARD, "attention": "swa,dma", "seqlen": "4k", "window": "128,256,1k,2k"},
            {**SHORT, "attention": "mha,dma,swa,mla", "window": 512, "seed": "0,1,2"},
            {**SHORT, "attention": "swa,dma", "window": "32,64,128,256"},
            {**HARD, "attention": "mla", "seqlen": "2k", "mla_latent": "16,64"},
            {**HARD, **LENGTHS, "attention": "nsa"},
            {**SHORT, "attention": "nsa", "window": 512, "seed": "0,1,2"},
            {**HARD, "attention": "nsa", "seqlen": "2k", "nsa_topk": "8,16"},
            {**HARD, **LENGTHS, "attention": ALL, "lr": "1e-3,4e-3"},
        ),
    ),
    "paper": Preset(
        "the published figure: 250,000 examples for 100 epochs, widths 32 to 256, no curriculum; weeks of one card",
        tuple(
            {
                **PAPER,
                "examples": PAPER_EXAMPLES,
                "seqlen": length,
                "d_model": width,
                "lr": PAPER_LR[width],
                "batch": batch,
                "steps": PAPER_EPOCHS * PAPER_EXAMPLES // batch,
            }
            for length, batch in PAPER_BATCH.items()
            for width in PAPER_LR
        ),
    ),
}
