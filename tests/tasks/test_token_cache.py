"""The cache of tokens: what is in it, what it is kept by, and that nothing is left of one that was not finished."""

import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from dmabench.tasks import corpus, token_cache, tokenizer
from dmabench.tasks.hub_text import HubText, Unreachable
from dmabench.tasks.token_cache import tokenised, trained_tokenizer

WORDS = tokenizer.named("bytes")
TEXTS = [f"text number {number}, naïve" for number in range(100)]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path, texts=TEXTS, more=""):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + more)
    return corpus.find(str(path))


def quiet(sentence):
    pass


def test_tokens_of_each_stream_in_the_order_of_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "BATCH", 100)
    found = tokenised(write(tmp_path / "a.jsonl"), WORDS, 1, quiet)
    train = [text for number, text in enumerate(TEXTS) if number % 20 != 19]
    assert found.train.dtype == np.uint16
    assert found.train.tolist() == np.concatenate(WORDS.encode(train)).tolist()
    held = [WORDS.tokenizer.decode(tokens[:-1]) for tokens, _ in found.validation]
    assert held == [TEXTS[19], TEXTS[59], TEXTS[99]]
    assert [int(sizes.sum()) for _, sizes in found.test] == [len(TEXTS[n].encode()) for n in (39, 79)]
    assert found.about["documents"] == {"train": 95, "validation": 3, "test": 2}
    assert found.about["tokens"]["train"] == len(found.train)


def test_made_once_and_again_only_for_other_text_or_another_tokenizer(tmp_path, monkeypatch):
    told = []
    one = tokenised(write(tmp_path / "a.jsonl"), WORDS, 1, told.append)
    again = tokenised(write(tmp_path / "other_name.jsonl"), WORDS, 10**9, told.append)
    assert one.about["key"] == again.about["key"] and told == ["tokenising a.jsonl"]
    other = tokenised(write(tmp_path / "b.jsonl", TEXTS[:50]), WORDS, 1, told.append)
    words = trained_tokenizer(corpus.find(str(tmp_path / "a.jsonl")), 300, told.append)
    third = tokenised(corpus.find(str(tmp_path / "a.jsonl")), words, 1, told.append)
    assert len({one.about["key"], other.about["key"], third.about["key"]}) == 3
    assert len(told) == 4
    monkeypatch.setattr(tokenizer, "train", lambda *_: pytest.fail("trained again"))
    assert trained_tokenizer(corpus.find(str(tmp_path / "a.jsonl")), 300, told.append).digest() == words.digest()


def test_broken_lines_are_told_each_time_and_refused_where_strict(tmp_path):
    texts = write(tmp_path / "a.jsonl", more="{broken\n")
    for _ in range(2):
        assert tokenised(texts, WORDS, 1, quiet).about["problems"].startswith("1 part of the text skipped: a.jsonl l")
        with pytest.raises(ValueError, match="line 101: no JSON; repair"):
            tokenised(texts, WORDS, 1, quiet, strict=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path, root, monkeypatch, code):
    texts = write(tmp_path / "a.jsonl")

    def full(descriptor):
        raise OSError(code, "no")

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.os, "fsync", full)
        with pytest.raises(
            ValueError, match=r"cannot be written to .*, and nothing of it was left .*DMABENCH_CACHE"
        ) as e:
            tokenised(texts, WORDS, 1, quiet)
    assert ("the disk is full" in str(e.value)) == (code == errno.ENOSPC)
    assert [path.name for path in (root / "tokens").iterdir()] == [".lock"]
    assert len(tokenised(texts, WORDS, 1, quiet).train)


def test_a_tokenizer_that_finds_no_room_leaves_nothing_either(tmp_path, root, monkeypatch):
    def full(self, folder):
        (folder / "tokenizer.json").write_text("{half")
        raise Exception("No space left on device (os error 28)")  # as the tokenizers library does

    monkeypatch.setattr(tokenizer.Words, "save", full)
    with pytest.raises(ValueError, match="the disk is full"):
        trained_tokenizer(write(tmp_path / "a.jsonl"), 300, quiet)
    assert [path.name for path in (root / "tokenizers").iterdir()] == [".lock"]


def test_an_interruption_leaves_nothing(tmp_path, root, monkeypatch):
    def interrupted(self, texts):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer.Words, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenised(write(tmp_path / "a.jsonl"), WORDS, 1, quiet)
    assert [path.name for path in (root / "tokens").iterdir()] == [".lock"]


def test_one_makes_it_while_the_others_wait(tmp_path):
    texts, told = write(tmp_path / "a.jsonl"), []
    threads = [threading.Thread(target=lambda: tokenised(texts, WORDS, 1, told.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["tokenising a.jsonl"]


class Rows:
    """A hub that counts what is read of it, or is not there."""

    def __init__(self, monkeypatch):
        self.read, self.there = 0, True
        monkeypatch.setattr(HubText, "digest", self.digest)
        monkeypatch.setattr(HubText, "_rows", self.rows)

    def digest(self, *_):
        if not self.there:
            raise Unreachable("the hub does not answer")
        return "commit"

    def rows(self, *_):
        if not self.there:
            raise Unreachable("the hub does not answer")
        for number in range(10_000):
            self.read += 1
            yield {"text": f"row {number} of the hub", "id": number}


def test_the_hub_is_read_as_far_as_it_is_needed_and_once(monkeypatch):
    monkeypatch.setattr(token_cache, "BATCH", 500)
    rows, told = Rows(monkeypatch), []
    texts = corpus.find("org/name")
    found = tokenised(texts, WORDS, 3000, told.append)
    assert 3000 <= len(found.train) < 4500 and rows.read < 300
    assert len(found.validation.ends) > 1
    read, rows.there = rows.read, False
    assert len(tokenised(texts, WORDS, 3000, told.append).train) == len(found.train)
    assert rows.read == read and told[-1].startswith("the hub does not answer: using what was read")
    with pytest.raises(Unreachable):
        tokenised(corpus.find("org/other"), WORDS, 3000, quiet)


def test_the_hub_ends_where_text_is_held_out_by_name_too(monkeypatch, tmp_path):
    monkeypatch.setattr(token_cache, "BATCH", 500)
    write(tmp_path / "held.jsonl", ["held one", "held two"])
    rows = Rows(monkeypatch)
    found = tokenised(corpus.find("org/name", str(tmp_path / "held.jsonl")), WORDS, 3000, quiet)
    assert 3000 <= len(found.train) < 4500 and rows.read < 300
    assert [WORDS.tokenizer.decode(tokens[:-1]) for tokens, _ in found.test] == ["held two"]


def test_rows_without_the_field_are_refused(monkeypatch):
    Rows(monkeypatch)
    with pytest.raises(ValueError, match=r"org/name has the fields text, id and no body: name the right one"):
        tokenised(corpus.find("org/name", field="body"), WORDS, 10, quiet)


def test_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DMABENCH_CACHE")
    assert token_cache.cache_root() == Path(tmp_path) / "dmabench"


def test_without_a_hub_a_sentence_says_what_to_do(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(ValueError, match=r"the hub does not give org/name \(OSError: no route\)\. Without a network"):
        tokenised(corpus.find("org/name"), WORDS, 10, quiet)
