"""Texts encoded ahead have the tokens that each has by itself."""

import os

import pytest

from dmabench.tasks import tokenizer
from dmabench.tasks.downstream import ahead

TEXT = "the quick brown fox jumps over the lazy dog, über alles \u4e2d\u6587\n\n"


def test_texts_are_those_that_lm_eval_encodes():
    pairs = [("a b ", " c"), ("a b ", " d"), ("", "e"), ("f", "g")]
    assert ahead.texts_of(pairs) == ["a b  c", "a b", "a b  d", "fg", "f"]


@pytest.mark.parametrize("how", [{}, {"add_special_tokens": False}])
def test_tokens_are_those_of_each_text(how, monkeypatch):
    monkeypatch.setattr(ahead, "AT_ONCE", 3)
    words = tokenizer.train([TEXT * 5], 300).tokenizer
    texts = [TEXT[:at] for at in (1, 5, 20, 44, 46, 60)] + [f"{tokenizer.END} in a text"]
    found = ahead.encode(words, texts, **how)
    assert {text: ids.tolist() for text, ids in found.items()} == {text: words.encode(text, **how) for text in texts}
    assert ahead.encode(words, []) == {}


@pytest.mark.parametrize("before", [None, "false"])
def test_parallelism_ends_with_the_call(before, monkeypatch):
    monkeypatch.delenv(ahead.PARALLEL, raising=False)
    if before:
        monkeypatch.setenv(ahead.PARALLEL, before)
    seen = []
    ahead.encode(lambda some, **how: seen.append(os.environ[ahead.PARALLEL]) or {"input_ids": [[1]]}, ["a"])
    assert seen == ["true"]
    assert os.environ.get(ahead.PARALLEL) == before
