"""Models from the settings of cells: the same but for the attention, seeded, counted."""

import re

import pytest
import torch

from dmabench.kernels import cost
from dmabench.tasks.kinds import KINDS
from dmabench.tasks.task_model import (
    MODEL_AXES,
    TRAIN_AXES,
    build_model,
    density,
    model_config,
    model_facts,
    model_refusal,
    sparsity_active,
    train_cost,
)

SETTINGS = {
    "attention": "mha",
    "window": 32,
    "d_model": 64,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "positions": "rope",
    "short_conv": 3,
    "mla_latent": None,
    "nsa_topk": None,
    "seed": 0,
    "batch": 8,
}


def settings(**changes: object) -> dict[str, object]:
    return {**SETTINGS, **changes}


def test_axes_are_named_once_and_settings_know_them() -> None:
    names = [axis.name for axis in (*MODEL_AXES, *TRAIN_AXES)]
    assert len(set(names)) == len(names)
    assert {axis.name for axis in MODEL_AXES} <= SETTINGS.keys()


@pytest.mark.parametrize("attention", KINDS)
def test_only_the_attention_differs(attention: str) -> None:
    model, dense = build_model(settings(attention=attention), 96, 128), build_model(settings(), 96, 128)
    config = model.config
    assert config.kinds == [attention] * 2 and config.window == 32
    assert (config.head_dim, config.num_key_value_heads, config.short_conv) == (32, 1, 3)
    other = [name for name, _ in model.named_parameters() if ".self_attn." not in name]
    assert other == [name for name, _ in dense.named_parameters() if ".self_attn." not in name]
    assert model(input_ids=torch.arange(96)[None]).logits.shape == (1, 96, 96)


def test_the_seed_decides_the_weights_and_the_global_one_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (build_model(settings(seed=seed), 96, 128) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_what_is_not_said_has_a_default() -> None:
    config = model_config({"attention": "dma", "d_model": 32}, 96, 128)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (2, 1, 1)
    assert (config.positions, config.short_conv) == ("rope", 0)
    assert model_config(settings(heads=4, kv_heads=None), 96, 128).num_key_value_heads == 4


def test_yarn_stretches_from_the_training_length() -> None:
    config = model_config(settings(positions="yarn", train_len=64), 96, 512)
    assert (config.trained_positions, config.yarn_factor, config.position_limit) == (64, 8.0, 512)
    assert model_config(settings(positions="none"), 96, 512).position_limit is None


def test_mla_and_nsa_take_their_own_axes() -> None:
    assert model_config(settings(attention="mla", mla_latent=24), 96, 128).latent_dims[0] == 24
    plain = model_config(settings(attention="nsa"), 96, 128).nsa_settings
    more = model_config(settings(attention="nsa", nsa_topk=8), 96, 128).nsa_settings
    assert plain.token_keys() == 32 and more.select_count == 8
    assert (more.select_block, more.window) == (plain.select_block, plain.window)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": 3}, "d_model 64 over 3 heads"),
        ({"d_model": 12, "heads": 2}, "multiple of 4"),
        ({"heads": 4, "kv_heads": 3}, "cannot share 3 key/value heads"),
        ({"attention": "dma", "window": 0}, "window must be an int of at least 1"),
        ({"attention": "nsa", "window": 8}, "window 8 is too small"),
        ({"attention": "nsa", "nsa_topk": 2}, "select_count must be at least 3"),
        ({"attention": "sw"}, "did you mean 'swa'"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changes: dict[str, object], reason: str) -> None:
    assert reason in (model_refusal(settings(**changes), 96, 128) or "")
    with pytest.raises(ValueError, match=re.escape(reason)):
        build_model(settings(**changes), 96, 128)


def test_what_fits_is_not_refused() -> None:
    for attention in KINDS:
        assert model_refusal(settings(attention=attention), 96, 128) is None


@pytest.mark.parametrize("attention", KINDS)
def test_density_counts_the_pairs_that_are_read(attention: str) -> None:
    model = build_model(settings(attention=attention), 96, 128)
    facts = model_facts(model, settings(attention=attention), 128)
    assert facts["parameters"] == sum(value.numel() for value in dict(model.named_parameters()).values())
    dense = 128 * 129 // 2
    window = 32 * 33 // 2 + 96 * 32
    if attention in ("mha", "mla"):
        assert (facts["density"], facts["sparsity_active"]) == (1.0, False)
    elif attention in ("swa", "dma"):
        assert facts["density"] == pytest.approx(window / dense) and facts["sparsity_active"]
    else:
        assert 0.3 < facts["density"] < 1 and facts["sparsity_active"]
    assert not sparsity_active(model.config, 32)
    if attention != "nsa":  # which reads summaries of blocks besides
        assert density(model.config, 32) == 1.0


def test_cost_counts_matrices_labels_and_pairs() -> None:
    B, T, V, C, D, H, labels = 8, 128, 96, 64, 32, 2, 5
    found = train_cost(settings(), 10 * B * T, T, V, labels)
    projections = C * D * (2 * H + 2)
    layer = projections + 3 * C * 2 * C + 2 * C + 2 * D + 3 * C
    matrices = 2 * layer + C
    expected = 10 * B * (6 * T * matrices + 6 * labels * V * C + 14 * D * H * 2 * cost.kept_pairs(T, T, None))
    assert found.tokens == 10 * B * T
    assert found.flops == pytest.approx(expected)
    assert 0 < found.mib < 100


def test_cost_falls_with_the_window_and_grows_with_the_tokens() -> None:
    sparse, dense = (train_cost(settings(attention=kind), 10_000, 1000, 96) for kind in ("dma", "mha"))
    assert sparse.flops < dense.flops
    assert train_cost(settings(), 20_000, 1000, 96).flops == pytest.approx(2 * dense.flops)
    assert train_cost(settings(batch=16), 10_000, 1000, 96).mib > dense.mib
