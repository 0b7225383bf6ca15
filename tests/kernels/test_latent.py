"""Latent attention against its definition, one form against the other, and both against transformers' module."""

import pytest
import torch

from dmabench.kernels import Problem, latent
from dmabench.kernels.latent import LatentDims, latent_attention

DIMS = LatentDims(latent=24, nope=16, rope=8, value=12)


def _problem(**changes) -> Problem:
    given = dict(device="cpu", dtype=torch.float64, batch=2, heads=3, kv_heads=1, query_len=20, key_len=20)
    return Problem(**{**given, "head_dim": 16, "window": None, "backward": False, **changes})


def _inputs(dims: LatentDims = DIMS, grad: bool = False, **changes) -> dict[str, torch.Tensor]:
    tensors = latent.example_inputs(_problem(**changes), torch.Generator().manual_seed(0), dims)
    return {name: x.requires_grad_(grad) for name, x in tensors.items()}


def _definition(q_nope, q_rope, latent, k_rope, up_k, up_v, key_mask=None):
    """One head, one query at a time, in float64 as it is written in the paper (equations 9 to 11 and 17 to 19)."""
    B, H, Tq, N = q_nope.shape
    Tk, scale = latent.shape[1], (N + q_rope.shape[-1]) ** -0.5
    out = []
    for b in range(B):
        for h in range(H):
            k = torch.cat([latent[b] @ up_k[h].T, k_rope[b]], -1)
            v = latent[b] @ up_v[h].T
            for r in range(Tq):
                seen = torch.arange(Tk) <= Tk - Tq + r
                if key_mask is not None:
                    seen &= key_mask[b]
                scores = k[seen] @ torch.cat([q_nope[b, h, r], q_rope[b, h, r]]) * scale
                out.append(scores.softmax(-1) @ v[seen] if seen.any() else v.new_zeros(v.shape[-1]))
    return torch.stack(out).view(B, H, Tq, -1)


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize(("Tq", "Tk"), [(20, 20), (1, 20), (7, 20), (1, 1)])
@pytest.mark.parametrize("dims", [DIMS, LatentDims(8, 4, 2, 10), LatentDims(8, 6, 2, 8)], ids=["", "wide_v", "equal"])
def test_both_forms_are_the_definition(absorbed, Tq, Tk, dims, grads):
    tensors = _inputs(dims, grad=True, query_len=Tq, key_len=Tk)
    found, expected = latent_attention(**tensors, absorbed=absorbed), _definition(**tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for name, one, other in zip(
        tensors, grads(found, tensors.values()), grads(expected, tensors.values()), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=name)


def test_absorbed_equals_expanded_at_the_sizes_of_the_paper():
    """A quarter of DeepSeek-V2's heads, its own dims: 512, 128, 64, 128."""
    problem = _problem(batch=1, heads=16, head_dim=128, query_len=2, key_len=300)
    assert latent.dims_for(problem) == LatentDims(512, 128, 64, 128)
    tensors = latent.example_inputs(problem, torch.Generator().manual_seed(1))
    difference = latent_attention(**tensors, absorbed=True) - latent_attention(**tensors)
    assert difference.abs().max() < 1e-12


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("Tq", [20, 1, 5])
def test_padded_keys_are_never_seen_and_padded_queries_give_zero(absorbed, Tq, grads):
    tensors = _inputs(grad=True, query_len=Tq)
    key_mask = torch.ones(2, 20, dtype=torch.bool)
    key_mask[0, :6] = False
    key_mask[1, 17:] = False
    found = latent_attention(**tensors, absorbed=absorbed, key_mask=key_mask)
    torch.testing.assert_close(found, _definition(**tensors, key_mask=key_mask), rtol=0, atol=1e-12)
    if Tq == 20:
        assert bool((found[0, :, :6] == 0).all())
    for name, grad in zip(tensors, grads(found, tensors.values()), strict=True):
        assert bool(grad.isfinite().all()), name
        if name in ("latent", "k_rope"):
            assert bool((grad[~key_mask] == 0).all()), name


@pytest.mark.parametrize("absorbed", [False, True])
def test_a_future_token_moves_no_earlier_output(absorbed):
    tensors = _inputs()
    before = latent_attention(**tensors, absorbed=absorbed)
    for name in ("latent", "k_rope"):
        tensors[name][:, 13] += 1.0
    after = latent_attention(**tensors, absorbed=absorbed)
    assert torch.equal(before[:, :, :13], after[:, :, :13])
    assert not torch.equal(before[:, :, 13], after[:, :, 13])


def test_blocks_of_queries_change_nothing(monkeypatch):
    tensors = _inputs()
    whole = latent_attention(**tensors, absorbed=True)
    monkeypatch.setattr(latent, "BLOCK_ELEMENTS", 2 * 3 * 20 * 3)  # three queries at a time: the last block has two
    torch.testing.assert_close(latent_attention(**tensors, absorbed=True), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_costs_what_it_must(absorbed, dtype, close):
    tensors = _inputs(dtype=dtype)
    found = latent_attention(**tensors, absorbed=absorbed)
    assert found.dtype == dtype
    close(found, _definition(**{name: x.double() for name, x in tensors.items()}))


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("q_lora_rank", [None, 20])
def test_equals_the_module_of_transformers(absorbed, q_lora_rank):
    """DeepseekV3Attention with the same weights: its projections, norms and rotation, our attention in the middle."""
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = pytest.importorskip("transformers").DeepseekV3Config(
        hidden_size=48,
        num_attention_heads=3,
        num_key_value_heads=3,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=DIMS.latent,
        qk_nope_head_dim=DIMS.nope,
        qk_rope_head_dim=DIMS.rope,
        v_head_dim=DIMS.value,
        rope_interleave=False,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    module = deepseek.DeepseekV3Attention(config, layer_idx=0).double().eval()
    rotary = deepseek.DeepseekV3RotaryEmbedding(config)
    T = 17
    hidden = torch.randn(2, T, 48, dtype=torch.float64)
    cos_sin = rotary(hidden, torch.arange(T)[None])
    causal = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    # float32 norms and float32 softmax inside the module: equal to float32 rounding, not float64's.
    expected, _ = module(hidden_states=hidden, position_embeddings=cos_sin, attention_mask=causal)

    q = hidden
    q = module.q_proj(q) if q_lora_rank is None else module.q_b_proj(module.q_a_layernorm(module.q_a_proj(q)))
    q_nope, q_rope = q.unflatten(-1, (3, -1)).transpose(1, 2).split([DIMS.nope, DIMS.rope], -1)
    latents, k_rope = module.kv_a_proj_with_mqa(hidden).split([DIMS.latent, DIMS.rope], -1)
    q_rope, k_rope = deepseek.apply_rotary_pos_emb(q_rope, k_rope[:, None], *cos_sin)
    up_k, up_v = module.kv_b_proj.weight.unflatten(0, (3, -1)).split([DIMS.nope, DIMS.value], 1)
    out = latent_attention(
        q_nope,
        q_rope,
        module.kv_a_layernorm(latents),
        k_rope[:, 0],
        up_k,
        up_v,
        scale=module.scaling,
        absorbed=absorbed,
    )
    found = module.o_proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("k_rope", (2, 20, 7), r"k_rope must be \(2, 20, 8\) beside q_nope \(2, 3, 20, 16\), got \(2, 20, 7\)"),
        ("up_k", (3, 16, 23), r"up_k must be \(3, 16, 24\)"),
        ("up_v", (1, 12, 24), r"up_v must be \(3, 12, 24\)"),
        ("latent", (1, 20, 24), r"latent must be \(2, 20, 24\)"),
        ("key_mask", (2, 19), r"key_mask must be \(2, 20\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, shape, message):
    tensors = _inputs() | {name: torch.ones(shape, dtype=torch.bool if name == "key_mask" else torch.float64)}
    with pytest.raises(ValueError, match=message):
        latent_attention(**tensors)


def test_more_queries_than_keys_are_refused():
    with pytest.raises(ValueError, match="20 queries but 19 keys"):
        latent_attention(**_inputs(key_len=19))


def test_backends_cache_and_inputs():
    expanded, absorbed = latent.BACKENDS
    assert [b.id for b in latent.BACKENDS] == ["mla/expanded", "mla/absorbed"]
    assert "decode" in absorbed.passes and "decode" not in expanded.passes
    assert "no backward" in (absorbed.refusal(_problem(backward=True)) or "")
    tensors = latent.example_inputs(_problem(batch=1, dtype=torch.float32), torch.Generator().manual_seed(0))
    assert list(tensors) == ["q_nope", "q_rope", "latent", "k_rope", "up_k", "up_v"]
    one, other = (b.attend(*tensors.values(), scale=0.3) for b in latent.BACKENDS)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    keys = tensors["latent"] @ tensors["up_k"][0].T
    assert 0.8 < float(keys.std()) < 1.2
    # A token of 16 heads of 128 in bf16: 512 + 64 numbers, where dense attention of 8 key/value heads stores 2048.
    problem = _problem(batch=3, heads=16, head_dim=128, key_len=1000, dtype=torch.bfloat16)
    assert latent.cache_bytes(problem) == 3 * 1000 * (512 + 64) * 2


def test_what_is_asked_while_compiling_is_marked_as_torch_marks_it():
    def marked(function):
        return {name for name in vars(function) if "dynamo" in name}

    assert marked(latent._cudnn_takes) == marked(torch.compiler.assume_constant_result(lambda: True)) != set()
