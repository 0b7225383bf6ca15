"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads from one latent a token."""

from torch import Tensor, nn

from dmabench.kernels.latent import latent_attention
from dmabench.tasks.attention.base import RMSNorm, Step, by_slot, rotate, uncompiled_on_cuda
from dmabench.tasks.cache import Growing, State
from dmabench.tasks.config import ModelConfig

attend = uncompiled_on_cuda(latent_attention)


class LatentAttention(nn.Module):
    """Expanded for whole sequences, absorbed for decoding; remembers every token's latent and rotary key.

    The projections are DeepSeek's, under its names, without the low-rank queries; see `ModelConfig.latent_dims` for
    their sizes. There is no norm on query and key heads as the other kinds have: it would stop keys from being
    linear in the latent, which absorption needs. The latent has the norm instead.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.latent, self.nope, self.rope = config.latent_dims
        width, H, self.value = config.hidden_size, config.num_attention_heads, config.head_dim
        self.q_proj = nn.Linear(width, H * (self.nope + self.rope), bias=config.attention_bias)
        self.kv_a_proj_with_mqa = nn.Linear(width, self.latent + self.rope, bias=config.attention_bias)
        self.kv_a_layernorm = RMSNorm(self.latent, eps=config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.latent, H * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(H * self.value, width, bias=config.attention_bias)

    @staticmethod
    def rotary_dims(config: ModelConfig) -> int:
        """How many rotary dims it asks the model for."""
        return config.latent_dims[2]

    def new_state(self, full: bool) -> State:
        """An empty state."""
        return Growing()

    def forward(self, x_BTC: Tensor, step: Step) -> Tensor:
        """Hidden states [B, T, C], after the layer's first norm, to what is added to the residual stream."""
        q_BHTD = self.q_proj(x_BTC).unflatten(-1, (-1, self.nope + self.rope)).transpose(1, 2)
        q_nope, q_rope = q_BHTD.split([self.nope, self.rope], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTC)[:, None].split([self.latent, self.rope], -1)
        latent = self.kv_a_layernorm(latent)
        q_rope, k_rope = rotate(q_rope, k_rope, step.rotary)
        # Under autocast norms return float32.
        q_rope, k_rope, latent = (x.to(q_nope.dtype) for x in (q_rope, k_rope, latent))
        further = step.state is not None and step.state.seen > 0
        if further:
            latent, k_rope = step.state.append(latent, k_rope)
        elif step.state is not None:
            step.state.append(*by_slot(step, latent, k_rope))
        if further:
            out = self._attend(q_nope, q_rope, latent, k_rope, absorbed=True, key_mask=step.mask_BT)
        else:
            out = self.first(q_nope, q_rope, latent, k_rope)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def first(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor) -> Tensor:
        """Attention of a whole sequence: q [B, H, T, dims] to latent and rotary key [B, 1, T, dims]; [B, H, T, D]."""
        return self._attend(q_nope, q_rope, latent, k_rope, absorbed=False, key_mask=None)

    def _attend(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        absorbed: bool,
        key_mask: Tensor | None,
    ) -> Tensor:
        up = self.kv_b_proj.weight.to(q_nope.dtype).unflatten(0, (-1, self.nope + self.value))
        up_k, up_v = up.split([self.nope, self.value], 1)
        return attend(q_nope, q_rope, latent[:, 0], k_rope[:, 0], up_k, up_v, absorbed=absorbed, key_mask=key_mask)
