"""How many parameters a model has, part by part, and how far the attentions are from each other."""

import torch

from dmabench.tasks import outside_attentions
from dmabench.tasks.config import ModelConfig
from dmabench.tasks.kinds import KINDS, known_kinds
from dmabench.tasks.presets import PRESETS, model_config

PARTS = ("embedding", "attn", "ffn", "norm", "short_conv")
LARGEST_DIFFERENCE = 0.02
"""Of all parameters, between any attention and mha with the same settings."""


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of each of PARTS, and `total`. The output layer counts as embedding where it is not tied to it."""
    from dmabench.tasks.model import DmabenchForCausalLM

    with torch.device("meta"):
        model = DmabenchForCausalLM(config)
    model.tie_weights()
    found = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():  # tied weights come once
        found[_part(name)] += parameter.numel()
    return {**found, "total": sum(found.values())}


def _part(name: str) -> str:
    if "embed_tokens" in name or "lm_head" in name:
        return "embedding"
    if ".self_attn." in name:
        return "attn"
    if ".mlp." in name:
        return "ffn"
    return "short_conv" if ".short_conv." in name else "norm"


def difference(config: ModelConfig) -> float:
    """Parameters more (or, below 0, less) than the same model with mha has, as a part of the latter's."""
    fields = {**config.to_dict(), "attention": "mha"}
    dense = parameters(ModelConfig(**fields))["total"]
    return parameters(config)["total"] / dense - 1


def table() -> list[dict[str, int | float | str]]:
    """A row for each preset and attention: the total, the difference to mha in percent of mha's, and the parts."""
    rows = []
    for preset in PRESETS:
        dense = None
        for kind in (kind for kind in known_kinds() if kind in KINDS or outside_attentions.is_sound(kind)):
            # One layer counted for all, since making 28 of them takes seconds.
            config = model_config(preset, kind, num_hidden_layers=1)
            layers = PRESETS[preset]["size"][0]
            one, none = parameters(config), config.hidden_size  # the last norm is of no layer
            parts = {part: one[part] * layers for part in PARTS if part != "embedding"}
            parts["norm"] = (one["norm"] - none) * layers + none
            total = one["embedding"] + sum(parts.values())
            dense = dense or total
            rows.append(
                {
                    "preset": preset,
                    "attention": kind,
                    "window": config.window,
                    "total": total,
                    "percent_off_mha": round(100 * (total / dense - 1), 2),
                    "embedding": one["embedding"],
                    **{part: parts[part] for part in PARTS[1:-1]},
                }
            )
    return rows
