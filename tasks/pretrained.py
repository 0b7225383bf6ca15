"""What transformers asks of a model: how weights start, how a checkpoint is loaded, and when it is refused."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from dmabench.tasks.attention.dma import GATE_STD, DynamicMaskAttention
from dmabench.tasks.config import ModelConfig
from dmabench.tasks.short_conv import ShortConv


class DmabenchPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model."""

    config_class = ModelConfig
    config: ModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("DecoderLayer",)
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DynamicMaskAttention) and module.W_dt is not None:
            init.normal_(module.W_dt, mean=0.0, std=self.config.initializer_range)
            init.normal_(module.A, mean=0.0, std=GATE_STD)
        elif isinstance(module, ShortConv):
            init.uniform_(module.weight, -(module.width**-0.5), module.width**-0.5)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but a checkpoint that does not fit is refused rather than filled with random numbers.

        Raises:
            ValueError: a checkpoint of another model or another attention, or with weights missing or left over.
        """
        saved, _ = ModelConfig.get_config_dict(name)
        if saved.get("model_type") != ModelConfig.model_type:
            raise ValueError(
                f"{name} holds a model of type {saved.get('model_type')!r}, not of dmabench; "
                "a Qwen3 checkpoint becomes one with --init-from (dmabench.tasks.convert)"
            )
        trained = saved.get("attention", ModelConfig.attention)
        wanted = kwargs.get("attention", getattr(kwargs.get("config"), "attention", trained))
        if wanted != trained:
            raise ValueError(
                f"{name} was trained with attention {trained}, not {wanted}: "
                "load it without naming an attention, or train one"
            )
        kwargs.setdefault("ignore_mismatched_sizes", True)  # they are refused below, by name
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        wrong = [
            f"{what}: {', '.join(sorted(map(str, info[key]))[:3])}"
            for key, what in (
                ("missing_keys", "missing"),
                ("unexpected_keys", "left over"),
                ("mismatched_keys", "of another shape"),
            )
            if info.get(key)
        ]
        if wrong:
            raise ValueError(f"the weights in {name} do not fit its settings; {'; '.join(wrong)}")
        return (model, info) if output_loading_info else model

    def set_window(self, window: int) -> None:
        """Another window for swa, nsa and dma, at test time. Caches made before keep theirs: make new ones."""
        before, self.config.window = self.config.window, window
        try:
            self.config.check()
        except ValueError:
            self.config.window = before
            raise

    def require_finite_importance(self) -> None:
        """ValueError if a dma layer's last forward met a NaN or infinite importance (one synchronisation a layer)."""
        for name, module in self.named_modules():
            if isinstance(module, DynamicMaskAttention) and module.finite is not None and not bool(module.finite.all()):
                raise ValueError(
                    f"importance in {name} has NaN or infinite values: the gate A or the values grew too large "
                    "(dma_parametrisation='linear' does not overflow), or training diverged"
                )
