"""Documented settings of `dmabench kernels`. A preset is one or more blocks of options, measured in one run."""

from typing import Any

from dmabench.workload.cells import DELTAS

CPU: dict[str, Any] = {
    "seqlen": "8k",
    "window": "1k",
    "batch": "1",
    "heads": "2",
    "kv_heads": "1",
    "head_dim": "64",
    "dtype": "fp32",
    "pass": "fwd",
    "level": "kernel",
    "delta": "iid",
    "backend": "dma/reference,dma/flex,dma/triton,dma/cuda,dense/sdpa-flash,dense/sdpa-math,swa/flex,mla/expanded",
}
"""Defaults on a machine without a GPU: what two cores finish within three minutes. nsa is not among them: its reference
alone runs there, and takes minutes at T = 8192; --backend 'nsa/*' asks for it."""

CUDA: dict[str, Any] = {
    "seqlen": "8k",
    "window": "1k",
    "batch": "1",
    "heads": "16",
    "kv_heads": "8",
    "head_dim": "128",
    "dtype": "bf16",
    "pass": "fwd",
    "level": "kernel",
    "delta": "iid",
    "backend": "dma/flex,dma/triton,dma/cuda,dma/sdpa-masked,dense/*,swa/flex,swa/varlen-flash,mla/expanded,nsa/fla",
}
"""Defaults on a GPU."""

DECODE = {
    "cpu": "dma/live-keys,dense/sdpa-flash,dense/sdpa-math,swa/sdpa,mla/absorbed,nsa/reference",
    "cuda": "dma/live-keys,dense/sdpa-*,swa/sdpa,mla/absorbed,nsa/reference",
}
"""Default backends of --pass decode."""

LAYER = {
    "cpu": "dma/reference,dense/sdpa-flash,swa/flex,mla/expanded",
    "cuda": "dma/triton,dma/cuda,dense/sdpa-*,swa/flex,swa/varlen-flash,mla/expanded,nsa/fla",
}
"""Default backends of --level layer for whole sequences: the fastest of each attention."""

_PAPER = {"head_dim": "128", "dtype": "bf16", "backend": "dma/flex,dma/triton,dma/cuda,dma/sdpa-masked,dense/*"}

_DMA = {"backend": "dma/flex,dma/triton,dma/cuda,dense/sdpa-flash,dense/sdpa-cudnn"}

NATIVE = {"heads": "16", "kv_heads": "1"}
"""A shape that fla-core's native sparse attention takes without padding groups to 16 heads."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "about": "smallest honest run: minutes on two CPU cores",
        "blocks": [{"seqlen": "1k,2k", "window": "256", "pass": "fwd"}],
    },
    "h100": {
        "about": "the headline shapes on one data-centre GPU",
        "blocks": [{"seqlen": "8k,32k,128k", "window": "1k,2k", "pass": "fwd,bwd"}],
    },
    "paper": {
        "about": "the shapes of the published kernel figures, to stand beside them",
        "blocks": [
            {**_PAPER, "heads": "32", "kv_heads": "8", "seqlen": "8k:32k:x2", "window": "1k", "pass": "fwd,bwd"},
            {**_PAPER, "heads": "2", "kv_heads": "1", "seqlen": "2k:32k:x2", "window": "1k,2k", "pass": "fwd"},
        ],
    },
    "attentions": {
        "about": "every attention side by side in a layer, whole sequences and decoding",
        "blocks": [
            {"level": "layer", "seqlen": "8k,32k,128k", "window": "2k", "pass": "fwd,bwd"},
            {"level": "layer", "seqlen": "8k,32k,128k", "window": "2k", "pass": "fwd,bwd", **NATIVE},
            {"level": "layer", "seqlen": "4k:512k:x2", "window": "1k", "pass": "decode"},
        ],
    },
    "decode": {
        "about": "one token after 4k to 512k, every attention, batches of 1 to 64",
        "blocks": [
            {"seqlen": "4k:512k:x2", "window": "1k", "pass": "decode"},
            {"seqlen": "8k,32k,128k,512k", "window": "1k", "pass": "decode", "batch": "8,64"},
        ],
    },
    "deltas": {
        "about": "every distribution of importance, which decides what can be skipped",
        "blocks": [
            {**_DMA, "delta": ",".join(DELTAS), "seqlen": "8k,32k", "window": "1k", "pass": "fwd,bwd"},
            {**_DMA, "delta": ",".join(DELTAS), "seqlen": "128k", "window": "2k", "pass": "fwd,bwd"},
        ],
    },
    "windows": {
        "about": "windows from 64 up to the sequence itself, where nothing is sparse: where it stops paying",
        "blocks": [
            {**_DMA, "seqlen": "8k", "window": "64:8k:x2", "pass": "fwd,bwd"},
            {**_DMA, "seqlen": "32k", "window": "64,256,1k,2k,4k,8k,16k,32k", "pass": "fwd,bwd"},
        ],
    },
    "shapes": {
        "about": "head dims, group sizes, batches and dtypes around the default shape",
        "blocks": [
            {"head_dim": "64,96,128,256", "pass": "fwd,bwd"},
            {"heads": "16", "kv_heads": "1,2,4,8,16", "pass": "fwd,bwd"},
            {"batch": "1,3", "seqlen": "1000,8191", "window": "100,1k", "pass": "fwd,bwd"},
            {"dtype": "fp16,bf16,fp32", "pass": "fwd,bwd"},
        ],
    },
}
