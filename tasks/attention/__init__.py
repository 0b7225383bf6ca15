"""The attentions of the model, a module per kind. A new one is a module here, an operator in kernels, and a line below;
or a module of another package (outside_attentions.py).

A kind is an nn.Module made from a ModelConfig with `forward(x_BTC, step)`, `new_state(full)` and
`rotary_dims(config)`; base.py has what most share.
"""

from importlib import import_module

from torch import nn

from dmabench.tasks import outside_attentions
from dmabench.tasks.config import ModelConfig
from dmabench.tasks.kinds import KINDS

CLASSES = {
    "mha": "DenseAttention",
    "swa": "WindowAttention",
    "mla": "LatentAttention",
    "nsa": "NativeSparseAttention",
    "dma": "DynamicMaskAttention",
}
assert tuple(CLASSES) == KINDS


def build(kind: str, config: ModelConfig) -> nn.Module:
    """An attention of one of KINDS, or from outside.

    Raises:
        ValueError: one from outside that is broken.
    """
    if kind not in CLASSES:
        return outside_attentions.load(kind)(config)
    return getattr(import_module(f"dmabench.tasks.attention.{kind}"), CLASSES[kind])(config)
