"""Layers and models against other people's implementations of the same functions, with shared weights."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.doge.configuration_doge import DogeConfig
from transformers.models.doge.modeling_doge import DogeAttention

from dmabench.tasks.attention import build
from dmabench.tasks.attention.base import RMSNorm, Step


def qwen3(model, **settings):
    """Qwen3ForCausalLM with the weights of one of our models; its norms round to float32, so ours are put in."""
    config = Qwen3Config(
        **{
            name: getattr(model.config, name)
            for name in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "intermediate_size",
                "vocab_size",
                "max_position_embeddings",
                "tie_word_embeddings",
                "rope_parameters",
            )
        },
        **settings,
    )
    theirs = Qwen3ForCausalLM(config).double().eval()
    theirs.load_state_dict(model.state_dict())
    in_float64(theirs)
    return theirs


def in_float64(module):
    """Replaces norms that compute in float32 whatever their input by ours, which does not in float64."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and not isinstance(child, RMSNorm):
                ours = RMSNorm(child.weight.shape[0], eps=child.variance_epsilon).double()
                ours.load_state_dict(child.state_dict())
                setattr(parent, name, ours)


def rotary(length, dim):
    """cos and sin [1, length, dim]."""
    angles = torch.arange(length, dtype=torch.float64)[:, None] * 100 ** -(torch.arange(0, dim, 2) / dim)
    both = torch.cat([angles, angles], -1)[None]
    return both.cos(), both.sin()


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def test_mha_is_qwen3(small):
    model, ids = small.model("mha"), small.tokens(2, 40)
    torch.testing.assert_close(model(ids).logits, qwen3(model)(ids).logits, rtol=0, atol=1e-11)


def test_mha_is_qwen3_in_float32_to_the_bit(small):
    model, ids = small.model("mha").float(), small.tokens(2, 40)
    theirs = Qwen3ForCausalLM(qwen3(model).config).eval()
    theirs.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", [{}, {"positions": "yarn", "yarn_factor": 4.0, "trained_positions": 64}])
def test_swa_is_qwen3_with_sliding_windows(small, positions):
    model, ids = small.model("swa", window=7, **positions), small.tokens(2, 40)
    settings = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
    if positions:
        theta = model.config.rope_parameters["rope_theta"]
        yarn = {"rope_type": "yarn", "rope_theta": theta, "factor": 4.0, "original_max_position_embeddings": 64}
        model.config.rope_parameters = yarn
    theirs = qwen3(model, **settings)
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", [1, 7, 40, 64])
def test_dma_is_doge(small, window):
    """Its dynamic mask fills the future before it takes the largest, so it is the paper's function wherever no two
    importances tie (its topk breaks ties at random; ours keeps the later)."""
    torch.manual_seed(0)
    ours = randomise(build("dma", small.config("dma", window=window)).double())
    config = DogeConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, keep_window_size=window
    )
    config._attn_implementation = "sdpa"
    theirs = DogeAttention(config, layer_idx=0).double()
    weights = {name: weight for name, weight in ours.state_dict().items() if name != "W_dt"}
    theirs.load_state_dict({**weights, "dt_proj.weight": ours.W_dt.detach().T.contiguous()})
    in_float64(theirs)
    x, tables = torch.randn(2, 40, 32, dtype=torch.float64), rotary(40, 8)
    causal = torch.ones(40, 40, dtype=torch.bool).tril().expand(2, 1, 40, 40)
    with torch.no_grad():
        delta = ours.delta(ours.v_proj(x).unflatten(-1, (-1, 8)).transpose(1, 2), x)
    assert all(len(head.unique()) == 40 for head in delta.flatten(0, 1))
    expected, _ = theirs(x, position_embeddings=tables, attention_mask=causal)
    torch.testing.assert_close(ours(x, Step({8: tables})), expected, rtol=0, atol=1e-11)


def test_dma_with_a_gate_of_zero_is_swa(small):
    dma, swa = small.model("dma", window=7), small.model("swa", window=7)
    with torch.no_grad():
        for layer in dma.model.layers:
            layer.self_attn.A.zero_()
    dma.load_state_dict(swa.state_dict(), strict=False)
    ids = small.tokens(2, 40)
    torch.testing.assert_close(dma(ids).logits, swa(ids).logits, rtol=0, atol=1e-11)


def test_dma_over_everything_is_dense_attention_with_a_bias(small):
    """With w >= T and the gate at zero, nothing is left but a constant that softmax does not see."""
    dma, mha = small.model("dma", window=64), small.model("mha")
    with torch.no_grad():
        for layer in dma.model.layers:
            layer.self_attn.A.zero_()
    dma.load_state_dict(mha.state_dict(), strict=False)
    ids = small.tokens(2, 40)
    torch.testing.assert_close(dma(ids).logits, mha(ids).logits, rtol=0, atol=1e-11)


def test_mla_is_deepseek(small):
    torch.manual_seed(0)
    ours = randomise(build("mla", small.config("mla")).double())
    latent, nope, rope = ours.latent, ours.nope, ours.rope
    config = DeepseekV3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=latent,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=8,
        rope_interleave=False,
    )
    config._attn_implementation = "sdpa"
    theirs = DeepseekV3Attention(config, layer_idx=0).double()
    theirs.load_state_dict(ours.state_dict())
    theirs.kv_a_layernorm.variance_epsilon = ours.kv_a_layernorm.variance_epsilon
    in_float64(theirs)
    x, tables = torch.randn(2, 40, 32, dtype=torch.float64), rotary(40, rope)
    causal = torch.ones(40, 40, dtype=torch.bool).tril().expand(2, 1, 40, 40)
    expected, *_ = theirs(x, position_embeddings=tables, attention_mask=causal)
    torch.testing.assert_close(ours(x, Step({rope: tables})), expected, rtol=0, atol=1e-11)


def test_nsa_whose_window_covers_everything_is_dense(small):
    """With the other branches' gates shut, what is left of NSA is its sliding window."""
    sizes = {"compress_block": 4, "compress_stride": 2, "select_block": 4, "select_count": 4, "window": 64}
    nsa, mha = (randomise(build(kind, small.config(kind, nsa=sizes)).double()) for kind in ("nsa", "mha"))
    nsa.load_state_dict(mha.state_dict(), strict=False)
    torch.manual_seed(0)
    x, tables = torch.randn(2, 40, 32, dtype=torch.float64), rotary(40, 8)
    nsa.gates = lambda x: torch.tensor([0.0, 0.0, 1.0], dtype=x.dtype).expand(2, 4, 40, 3)
    torch.testing.assert_close(nsa(x, Step({8: tables})), mha(x, Step({8: tables})), rtol=0, atol=1e-11)
