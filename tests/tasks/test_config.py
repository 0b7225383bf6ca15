"""Settings of a model: patterns, what is refused and how, and presets."""

import pytest

from dmabench.kernels.native_sparse import Settings
from dmabench.tasks.config import ModelConfig, parse_pattern, window_note
from dmabench.tasks.presets import PRESETS, model_config


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        ("dma", ["dma"]),
        ("swa:2,mha:1", ["swa", "swa", "mha"]),
        ("swa, mha:2 ,nsa", ["swa", "mha", "mha", "nsa"]),
    ],
)
def test_patterns(pattern, kinds):
    assert parse_pattern(pattern) == kinds


def test_layers_repeat_a_pattern(small):
    assert small.config("swa:2,mha:1", num_hidden_layers=7).kinds == ["swa", "swa", "mha"] * 2 + ["swa"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": "swaa"}, "attention 'swaa' is unknown, known are mha, swa, mla, nsa, dma; did you mean 'swa'?"),
        ({"attention": "dma:3,mna:1"}, "did you mean"),
        ({"attention": "swa:0"}, "'0' is no number of layers; a pattern looks like swa:5,mha:1"),
        ({"attention": "swa:x"}, "'x' is no number of layers"),
        ({"attention": ""}, "attention '' is unknown"),
        ({"positions": "ropes"}, "did you mean 'rope'"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads evenly"),
        ({"attention": "nsa", "num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads evenly"),
        ({"attention": "nsa", "window": 8}, "too small for native sparse attention"),
        ({"attention": "swa:1,nsa:1", "nsa": "equals"}, "nsa 'equals' is unknown, known are equal, paper"),
        ({"attention": "nsa", "nsa": {"compress_block": 7}}, "must divide"),
        ({"window": 0}, "window must be an int of at least 1"),
        ({"window": True}, "window must be an int"),
        ({"short_conv": -1}, "short_conv must be an int of at least 0"),
        ({"mla_latent": 0}, "mla_latent must be an int of at least 1"),
        ({"head_dim": 6}, "multiple of 4"),
        ({"positions": "yarn", "yarn_factor": 0.5}, "yarn_factor 0.5 must be at least 1"),
        ({"decode_cache": "half"}, "decode_cache 'half' is unknown"),
    ],
)
def test_what_is_refused(small, settings, said):
    with pytest.raises(ValueError) as refusal:
        small.config(**{"attention": "dma", **settings})
    assert said in str(refusal.value)


def test_sizes_of_nsa(small):
    assert small.config("nsa", window=512).nsa_settings.token_keys() == 512
    assert small.config("nsa", nsa="paper").nsa_settings == Settings()
    sizes = {"compress_block": 8, "compress_stride": 4, "select_block": 8, "select_count": 3, "window": 5}
    assert small.config("nsa", nsa=sizes).nsa_settings == Settings(**sizes)


def test_how_far_positions_reach(small):
    assert small.config("dma").position_limit == 256
    assert small.config("dma", positions="none").position_limit is None
    assert small.config("dma", positions="yarn", yarn_factor=4.0).position_limit == 1024
    assert small.config("dma", positions="yarn", yarn_factor=4.0, trained_positions=32).position_limit == 128


def test_a_window_over_everything_has_a_note(small):
    assert window_note(small.config("mha"), 5) is None
    assert window_note(small.config("dma"), 17) is None
    assert "window 16 covers all 16 tokens: dma and swa attention is dense" in window_note(small.config("swa,dma"), 16)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    {
        "7M": (6, 256, 2, 1, 768, 8192),
        "13M": (6, 384, 3, 1, 1024, 8192),
        "30M": (8, 512, 4, 2, 1536, 8192),
        "80M": (12, 768, 6, 3, 1152, 32768),
        "200M": (16, 1024, 8, 4, 2304, 32768),
        "680M": (24, 1536, 12, 6, 4096, 32768),
        "1.7B": (28, 2048, 16, 8, 6144, 151936),
    }.items(),
)
def test_presets(preset, sizes):
    config = model_config(preset)
    assert sizes == (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        config.vocab_size,
    )
    assert config.head_dim == 128 and config.tie_word_embeddings and config.attention == "dma"
    assert config.latent_dims[0] == config.hidden_size // 4


def test_presets_share_nothing():
    """A configuration writes into the dictionaries that it is given."""
    one = model_config("1.7B", "swa:5,mha:1", window=64)
    one.rope_parameters["rope_theta"] = 7.0
    assert one.window == 64 and one.kinds[5] == "mha"
    assert model_config("1.7B").rope_parameters["rope_theta"] == 1e6
    assert PRESETS["30M"]["size"][-1] == model_config("30M").window == 512


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"no preset '31M'; known are tiny, 0\.5M, 1\.4M, 7M"):
        model_config("31M")


def test_defaults_make_a_model():
    assert ModelConfig().kinds == ["dma"] * 32


def test_a_dictionary_is_enough(small):
    config = small.config("swa:5,mha:1", num_hidden_layers=7)
    assert ModelConfig(**config.to_dict()).kinds == ["swa"] * 5 + ["mha", "swa"]
