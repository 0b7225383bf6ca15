"""What an ablation changes: one part of dma at a time, and the attention that a trained model is tested with."""

from typing import Any

import torch

from dmabench.tasks.model import DmabenchForCausalLM

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: attention, fields of the config
    "v-learned": ("dma", {}),
    "k-learned": ("dma", {"dma_importance": "k"}),
    "random": ("dma", {"dma_importance": "random"}),
    "constant": ("dma", {"dma_importance": "constant"}),
    "recency": ("dma", {"dma_importance": "recency"}),
    "shared": ("dma", {"dma_shared": True}),
    "no-bias": ("dma", {"dma_bias": False}),
    "no-mask": ("dma", {"dma_mask": False}),
    "linear": ("dma", {"dma_parametrisation": "linear"}),
    "swa": ("swa", {}),
    "mha": ("mha", {}),
}
"""v-learned is DMA; constant is swa, which stands beside it as a check; mha is the control."""

OWN = "own"
TESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "mha": ("mha", {}),
    "swa": ("swa", {}),
    "dma": ("dma", {}),
    "no-mask": ("dma", {"dma_mask": False}),
    "no-bias": ("dma", {"dma_bias": False}),
}
"""Attentions that a model trained with another may be tested with, besides its own: what is the mask of training worth
at inference, and the other way round? A variant of dma keeps where its importance comes from."""


def under_attention(model: Any, name: str) -> Any | None:
    """The same weights under another attention of TESTED; None where that is the one it has, or a part of dma is taken
    from a model that is none.

    Importance that was never trained (mha tested as dma) starts as in a new model, from seed 0.
    """
    if name == OWN:
        return model
    attention, changed = TESTED[name]
    if changed and model.config.attention != "dma":
        return None
    fields = model.config.to_dict()
    if model.config.attention == "dma" and attention == "dma":
        own = {"dma_mask": True, "dma_bias": True} if name == "dma" else {}
        fields |= own | changed
    else:
        fields |= {"attention": attention, **changed}
    config = type(model.config)(**fields)
    if config.to_dict() == model.config.to_dict():
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = DmabenchForCausalLM(config)
    missing, _ = other.load_state_dict(model.state_dict(), strict=False)
    unknown = [one for one in missing if not one.endswith(("W_dt", ".A"))]
    assert not unknown, f"weights that only importance may lack: {unknown}"
    return other.to(next(model.parameters()).device).eval()
