"""One layer of the decoder."""

from typing import Any

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from dmabench.tasks import attention
from dmabench.tasks.attention.base import RMSNorm, Step
from dmabench.tasks.cache import LayerCache, Tail, WholeTail
from dmabench.tasks.config import ModelConfig
from dmabench.tasks.short_conv import ShortConv


class DecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each after a norm and added to its input; with a short convolution if asked for."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.self_attn: Any = attention.build(kind, config)
        self.mlp = Qwen3MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.short_conv = ShortConv(config.hidden_size, config.short_conv) if config.short_conv else None

    def forward(self, x_BTC: Tensor, step: Step, tail: Tail | None = None) -> Tensor:
        """Hidden states [B, T, C], in compact places."""
        y = self.input_layernorm(x_BTC)
        if self.short_conv is not None:
            y = self.short_conv(y, tail, step.padding)
        x_BTC = x_BTC + self.self_attn(y, step)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))

    def new_cache(self, full: bool) -> LayerCache:
        """An empty cache."""
        tail = None
        if self.short_conv is not None:
            count = self.short_conv.width - 1
            tail = WholeTail(count) if full else Tail(count)
        return LayerCache(self.self_attn.new_state(full), tail)
