"""Tokenizers: any text comes back, bytes are counted exactly, the same text trains the same one."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks import tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the log, naïvely", "今日は天気です the the"] * 3


@pytest.fixture(scope="module")
def words():
    return tokenizer.train(TEXTS, 300)


@given(text=st.text(min_size=1))
def test_any_text_comes_back_and_its_bytes_are_counted(words, text):
    (ids,) = words.encode([text])
    again, sizes = words.encode_with_bytes(text)
    assert ids.dtype == np.int64 and ids.tolist() == again.tolist()
    assert ids[-1] == words.end and words.end not in ids[:-1]
    assert words.tokenizer.decode(ids[:-1]) == text
    assert sizes.sum() == len(text.encode()) and (sizes >= 0).all()


@given(text=st.text(alphabet="aé三𝄞 ", min_size=1, max_size=8))
def test_a_token_a_byte(text):
    words = tokenizer.named("bytes")
    assert words.size == tokenizer.LEAST
    ids, sizes = words.encode_with_bytes(text)
    assert len(ids) == len(text.encode()) + 1
    assert sizes[0] == len(text[0].encode())


def test_the_size_is_kept_and_the_digest_tells_tokenizers_apart(words):
    assert words.size == 300
    assert tokenizer.train(TEXTS, 300).digest() == words.digest()
    assert tokenizer.train(TEXTS, 290).digest() != words.digest()
    with pytest.raises(ValueError, match="it needs 257"):
        tokenizer.train(TEXTS, 256)


def test_only_the_beginning_trains(monkeypatch):
    monkeypatch.setattr(tokenizer, "TRAIN_CHARACTERS", len(TEXTS[0]))
    assert tokenizer.train(TEXTS, 300).digest() == tokenizer.train(TEXTS[:1], 300).digest()


def test_saved_and_found_again_by_folder(words, tmp_path):
    words.save(tmp_path)
    for found in (tokenizer.read(tmp_path), tokenizer.named(str(tmp_path))):
        assert found.encode(TEXTS)[1].tolist() == words.encode(TEXTS)[1].tolist()
        assert found.end == words.end


def test_gpt2_by_the_names_of_its_files(tmp_path, words):
    model = json.loads(words.tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "encoder.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]))
    found = tokenizer.named(str(tmp_path))
    assert found.size == words.size and found.end == words.end
    assert found.encode(TEXTS)[2].tolist() == words.encode(TEXTS)[2].tolist()


def test_what_is_no_tokenizer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no tokenizer that can be loaded"):
        tokenizer.named(str(tmp_path))
    for name in ("/no/such/folder", f"{tmp_path}/missing", "a/b/c"):
        with pytest.raises(ValueError, match="there is no such folder"):
            tokenizer.check(name)
    for name in ("bytes", "trained", str(tmp_path), "gpt2", "Qwen/Qwen3-1.7B"):
        tokenizer.check(name)
