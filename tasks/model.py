"""One decoder in which only the attention changes: Qwen3's structure as a transformers model.

    config = dmabench.tasks.presets.model_config("30M", attention="swa:5,mha:1")
    model = DmabenchForCausalLM(config)

Importing this module registers the model with AutoConfig, AutoModel and AutoModelForCausalLM.
"""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
from transformers.utils import logging

from dmabench.tasks.attention.base import RMSNorm, Step
from dmabench.tasks.cache import ModelCache
from dmabench.tasks.config import ModelConfig, window_note
from dmabench.tasks.layer import DecoderLayer
from dmabench.tasks.padding import Padding
from dmabench.tasks.pretrained import DmabenchPreTrainedModel

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache: past_key_values until 5.2x, cache since. The model takes both names."""

note_once = functools.cache(logging.get_logger(__name__).warning)


class DmabenchModel(DmabenchPreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        config.check()
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        layers = [DecoderLayer(config, kind) for kind in config.kinds]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        dims = sorted({layer.self_attn.rotary_dims(config) for layer in layers})
        if config.positions == "none":
            dims = []
        self.rotary_emb = nn.ModuleDict({str(dim): Qwen3RotaryEmbedding(config.rotary(dim)) for dim in dims})
        self.gradient_checkpointing = False
        self.post_init()

    def new_cache(self, kind: str | None = None) -> ModelCache:
        """An empty cache, "bounded" or "full"; by default what the config's decode_cache says."""
        full = (kind or self.config.decode_cache) == "full"
        return ModelCache([cast(DecoderLayer, layer).new_cache(full) for layer in self.layers])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: ModelCache | None = None,
        past_key_values: ModelCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens [B, T] to hidden states [B, T, C].

        Args:
            attention_mask: [B, tokens so far], 0 for padding, on the left or on the right of a row. Outputs at
                padding have no meaning. Without it, tokens are real, save those that the cache knows as padding.
            position_ids: [B or 1, T]; default: real tokens counted from 0.
            cache: what earlier calls left, for further tokens; `past_key_values` is its older name.
            use_cache: return a cache; default: only where one is given.

        Raises:
            ValueError: padding between real tokens, more tokens than positions reach to, a mask that does not fit.
        """
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            cache, use_cache = None, False  # a layer that runs twice would remember twice
        if use_cache and cache is None:
            cache = self.new_cache()
        if cache is not None and not isinstance(cache, ModelCache):
            raise ValueError(f"cache must come from model.new_cache(), got {type(cache).__name__}")
        seen = 0 if cache is None else cache.get_seq_length()
        self._check_length(seen, x.shape[1], cached=cache is not None)
        padding, mask = self._padding(attention_mask, cache, seen, x)
        if padding is not None:
            x = padding.compact(x)
            position_ids = padding.compact(position_ids.expand(x.shape[:2])) if position_ids is not None else None
        rotary = self._rotary(x, position_ids, seen, None if padding is not None else mask)
        states: list[Tensor] | None = [] if output_hidden_states else None
        for number, layer in enumerate(self.layers):
            if states is not None:
                states.append(x)
            held = None if cache is None else cache.layers[number]
            step = Step(rotary, None if held is None else held.state, padding, mask)
            x = layer(x, step, None if held is None else held.tail)
        x = self.norm(x)
        if states is not None:
            states.append(x)
        if padding is not None:
            x = padding.slots(x)
            states = None if states is None else [padding.slots(state) for state in states]
        return BaseModelOutputWithPast(
            last_hidden_state=x, hidden_states=None if states is None else tuple(states), **{CACHE: cache}
        )

    def _check_length(self, seen: int, new: int, cached: bool) -> None:
        limit = self.config.position_limit
        if limit is not None and seen + new > limit:
            raise ValueError(
                f"{seen + new} tokens, but positions reach to {limit}: shorten the input, load the model with "
                "positions='yarn' and a yarn_factor that reaches further, or raise max_position_embeddings"
            )
        if not cached and (note := window_note(self.config, new)):
            note_once(note)

    def _padding(
        self, attention_mask: Tensor | None, cache: ModelCache | None, seen: int, x: Tensor
    ) -> tuple[Padding | None, Tensor | None]:
        """How to lay out a first call, and the mask by slot of all tokens so far."""
        B, T, _ = x.shape
        if attention_mask is not None and attention_mask.shape != (B, seen + T):
            raise ValueError(
                f"attention_mask must be {(B, seen + T)}: one number for each token so far, the {seen} in the cache "
                f"among them; got {tuple(attention_mask.shape)}"
            )
        if seen == 0:
            padding = None if attention_mask is None else Padding.of(attention_mask)
            mask = None if padding is None else padding.mask_BT
            if cache is not None:
                cache.mask_BT = mask
            return padding, mask
        assert cache is not None
        ended = cache.mask_BT is not None and bool((cache.mask_BT.any(-1) & ~cache.mask_BT[:, -1]).any())
        if ended or (attention_mask is not None and not bool(attention_mask[:, seen:].all())):
            raise ValueError(
                "tokens after padding of their row: batches that go on with a cache are padded on the left, "
                "before the first call alone"
            )
        cache.grow_mask(T)
        return None, cache.mask_BT

    def _rotary(self, x: Tensor, position_ids: Tensor | None, seen: int, mask: Tensor | None) -> dict:
        """cos and sin for each number of rotary dims. Compact places count real tokens; slots need the mask to."""
        if not self.rotary_emb:
            return {}
        if position_ids is None:
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
            if mask is not None:
                position_ids = position_ids - (~mask).sum(-1, keepdim=True)
        return {int(dim): embedding(x, position_ids) for dim, embedding in self.rotary_emb.items()}


class DmabenchForCausalLM(DmabenchPreTrainedModel, GenerationMixin):
    """The model with its output layer, tied to the embedding unless the config says otherwise."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.model = DmabenchModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def new_cache(self, kind: str | None = None) -> ModelCache:
        """An empty cache, "bounded" or "full"; by default what the config's decode_cache says."""
        return self.model.new_cache(kind)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cache: ModelCache | None = None,
        past_key_values: ModelCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As DmabenchModel.forward; logits [B, T, vocabulary], and the loss where there are labels (-100: left out).

        Args:
            logits_to_keep: only the last that many tokens get logits (0: all), or those at these indices.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cache=cache,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=out.hidden_states, **{CACHE: out.get(CACHE)}
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers would make its own cache, which knows none of these attentions."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: each attention of this model has "
                "a cache of its own, chosen with decode_cache (bounded or full)"
            )
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE] = self.new_cache()
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


AutoConfig.register(ModelConfig.model_type, ModelConfig, exist_ok=True)
AutoModel.register(ModelConfig, DmabenchModel, exist_ok=True)
AutoModelForCausalLM.register(ModelConfig, DmabenchForCausalLM, exist_ok=True)
