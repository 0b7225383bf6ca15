"""Lengths, cuts and density of examples, against counting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.downstream.audit import Example, audit, layers_of, longest
from dmabench.tasks.presets import model_config


def test_an_example_counts_once_with_its_longest_request():
    asked = [Example("a", 0, 5, 5), Example("a", 0, 9, 8), Example("a", 1, 3, 3), Example("b", 0, 1, 1)]
    found = longest(asked)
    assert [one.tokens for one in found["a"]] == [9, 3] and [one.tokens for one in found["b"]] == [1]
    assert [one.truncated for one in found["a"]] == [True, False]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), window=st.integers(1, 20))
def test_density_and_sparsity_by_counting(lengths, window):
    config = model_config("tiny", "swa:1,mha:1", window=window)
    found = audit([Example("a", at, n, n) for at, n in enumerate(lengths)], config)

    def kept(n):
        """Share of the causal pairs that a window keeps."""
        return sum(i - j < window for i in range(n) for j in range(i + 1)) / (n * (n + 1) / 2)

    assert found["density"] == pytest.approx(sum((kept(n) + 1) / 2 for n in lengths) / len(lengths))
    assert found["sparsity_active"] == sum(n > window for n in lengths) / len(lengths)
    assert (found["tokens_max"], found["truncated"]) == (max(lengths), 0)


@pytest.mark.parametrize("attention", ["mha", "mla", "swa", "dma", "nsa"])
def test_every_attention_has_an_audit(attention):
    found = audit([Example("a", 0, 900, 800)], model_config("tiny", attention, window=64))
    dense = attention in ("mha", "mla")
    assert found["truncated"] == 1 and found["tokens_max"] == 900
    assert (found["density"] == 1) == dense and (found["sparsity_active"] == 0) == dense


def test_windows_of_other_models_are_seen():
    class Config:
        num_hidden_layers = 3
        sliding_window = 4096
        layer_types = ("sliding_attention", "full_attention", "sliding_attention")

    assert layers_of(Config()) == [4096, None, 4096]


def test_no_examples_no_numbers():
    assert set(audit([], None).values()) == {None}
