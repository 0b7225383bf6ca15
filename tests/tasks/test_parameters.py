"""Parameters are counted right, and the attentions are matched."""

import pytest

from dmabench.tasks.kinds import KINDS
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.parameters import LARGEST_DIFFERENCE, difference, parameters, table
from dmabench.tasks.presets import PRESETS, model_config


def test_parts_add_up_to_the_model(small, attention):
    config = small.config(attention, short_conv=3)
    counted = parameters(config)
    total = sum(parameter.numel() for parameter in DmabenchForCausalLM(config).parameters())
    assert counted["total"] == total == sum(number for part, number in counted.items() if part != "total")
    assert counted["embedding"] == config.vocab_size * config.hidden_size
    assert counted["short_conv"] == config.num_hidden_layers * 3 * config.hidden_size
    assert counted["ffn"] == config.num_hidden_layers * 3 * config.hidden_size * config.intermediate_size


def test_an_output_layer_of_its_own_counts(small):
    tied, untied = (parameters(small.config("dma", tie_word_embeddings=tie)) for tie in (True, False))
    assert untied["embedding"] == 2 * tied["embedding"]


def test_attentions_of_every_preset_are_matched():
    rows = table()
    assert [(row["preset"], row["attention"]) for row in rows] == [(name, kind) for name in PRESETS for kind in KINDS]
    for row in rows:
        assert abs(row["percent_off_mha"]) <= 100 * LARGEST_DIFFERENCE, row
        if row["preset"] != "tiny":
            named = float(row["preset"].rstrip("MB")) * (1e9 if row["preset"].endswith("B") else 1e6)
            assert row["total"] == pytest.approx(named, rel=0.04), row


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_the_models(kind):
    """It counts one layer for all: the whole model must have the same number."""
    config = model_config("7M", kind)
    counted = parameters(config)
    (row,) = (row for row in table() if (row["preset"], row["attention"]) == ("7M", kind))
    assert {part: row[part] for part in ("total", "embedding", "attn", "ffn", "norm")} == {
        part: counted[part] for part in ("total", "embedding", "attn", "ffn", "norm")
    }
    assert round(100 * difference(config), 2) == row["percent_off_mha"]
