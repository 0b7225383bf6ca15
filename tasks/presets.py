"""Sizes of models. Layers, widths and heads from 80M on are the paper's (arXiv 2508.02124); FFN and vocabulary ours.

The paper does not tell those two; ours bring each model to the size that its name says.
"""

from typing import Any

from dmabench.tasks.config import ModelConfig

PRESETS: dict[str, dict[str, Any]] = {
    # layers, width, query heads, key/value heads, FFN, vocabulary, window; the rest is common
    "tiny": {"size": (2, 64, 4, 2, 128, 256, 16), "head_dim": 16},
    "0.5M": {"size": (3, 128, 4, 2, 256, 512, 32), "head_dim": 32},
    "1.4M": {"size": (4, 192, 6, 3, 384, 512, 32), "head_dim": 32},
    "7M": {"size": (6, 256, 2, 1, 768, 8192, 512)},
    "13M": {"size": (6, 384, 3, 1, 1024, 8192, 512)},
    "30M": {"size": (8, 512, 4, 2, 1536, 8192, 512)},
    "80M": {"size": (12, 768, 6, 3, 1152, 32768, 1024)},
    "200M": {"size": (16, 1024, 8, 4, 2304, 32768, 1024)},
    "680M": {"size": (24, 1536, 12, 6, 4096, 32768, 1024)},
    "1.7B": {
        "size": (28, 2048, 16, 8, 6144, 151936, 2048),
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}
"""tiny is for tests, as are 0.5M and 1.4M, which a CPU trains in minutes; 1.7B is Qwen3-1.7B."""

FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "window",
)


def model_config(preset: str, attention: str = "dma", **overrides: Any) -> ModelConfig:
    """The settings of a preset with that attention (a kind or a pattern).

    Args:
        overrides: any field of ModelConfig, instead of the preset's.

    Raises:
        ValueError: an unknown preset or attention, or settings that do not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; known are {', '.join(PRESETS)}")
    fields = {key: value for key, value in PRESETS[preset].items() if key != "size"}
    common = {
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    sizes = dict(zip(FIELDS, PRESETS[preset]["size"], strict=True))
    settings = {**common, **sizes, **fields, "attention": attention, **overrides}
    if "rope_parameters" not in overrides:
        settings["rope_parameters"] = dict(settings["rope_parameters"])  # the config writes into it
    return ModelConfig(**settings)
