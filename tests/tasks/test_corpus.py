"""Where text comes from, and what of it is held out."""

import json

import pytest

from dmabench.tasks import corpus, synthetic_text
from dmabench.tasks.text_problems import Problems


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def split(texts):
    found = {"train": [], "validation": [], "test": []}
    problems = Problems()
    for stream, text in texts.split(problems):
        found[stream].append(text)
    return found, problems


def test_every_twentieth_of_many_documents_is_held_out(tmp_path):
    texts = [f"document {number}" for number in range(85)]
    found, _ = split(corpus.find(str(lines(tmp_path / "a.jsonl", texts))))
    assert found["validation"] == ["document 19", "document 59"]
    assert found["test"] == ["document 39", "document 79"]
    assert len(found["train"]) == 81


def test_of_few_documents_the_ends_are_held_out(tmp_path):
    text = " ".join(f"word{number}" for number in range(400))
    (tmp_path / "a.txt").write_text(text)
    found, _ = split(corpus.find(str(tmp_path / "a.txt")))
    parts = [found[stream][0] for stream in ("train", "validation", "test")]
    assert "".join(parts) == text
    assert [round(len(part) / len(text), 2) for part in parts] == [0.9, 0.05, 0.05]
    assert all(part.startswith(" word") for part in parts[1:])


def test_a_folder_with_validation_files_holds_those_out(tmp_path):
    lines(tmp_path / "train-1.jsonl", ["a", "b"])
    lines(tmp_path / "train-2.jsonl", ["c"])
    lines(tmp_path / "validation.jsonl", ["v", "w", "x"])
    (tmp_path / "README.md").write_text("not a text")
    found, _ = split(corpus.find(str(tmp_path)))
    assert found == {"train": ["a", "b", "c"], "validation": ["v", "x"], "test": ["w"]}


def test_text_held_out_by_name_and_a_single_one_is_halved(tmp_path):
    data = str(lines(tmp_path / "a.jsonl", ["a"] * 50))
    (tmp_path / "held.txt").write_text("0123456789")
    found, _ = split(corpus.find(data, str(tmp_path / "held.txt")))
    assert found == {"train": ["a"] * 50, "validation": ["01234"], "test": ["56789"]}


def test_all_texts_of_a_folder_and_its_empty_files_named(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.txt").write_text("")
    texts = corpus.find(str(tmp_path))
    problems = Problems()
    assert list(texts.train.documents(problems)) == ["a text"]
    assert problems.places == ["b.txt: is empty"]
    with pytest.raises(ValueError, match=r"b.txt: is empty; repair it"):
        list(texts.train.documents(Problems(strict=True)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("missing.jsonl", "there is no such file or folder"),
        ("folder/missing", "there is no such file or folder"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("folder", "no file in this folder is a text"),
        ("a.bin", "a.bin is no text that can be read here"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, data, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=told):
        corpus.find(data)


def test_text_that_is_blank_throughout_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(" \n ")
    with pytest.raises(ValueError, match=r"a.txt has no text \(1 part of the text skipped: a.txt: a blank text\)"):
        split(corpus.find(str(tmp_path / "a.txt")))


def test_names_below_the_data_folder_of_the_environment(tmp_path, monkeypatch):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("a book")
    monkeypatch.setenv("DMABENCH_DATA", str(tmp_path))
    assert corpus.find("books").train.name == "books"
    assert not corpus.is_hub("books")


def test_a_name_of_the_hub_asks_nothing_yet():
    texts = corpus.find(corpus.HUB_DEFAULT)
    assert corpus.is_hub(corpus.HUB_DEFAULT) and texts.train.endless and texts.heldout is None


def test_the_digest_follows_content_and_field_but_not_names(tmp_path):
    one = corpus.find(str(lines(tmp_path / "a.jsonl", ["a"]))).train.digest()
    assert corpus.find(str(lines(tmp_path / "b.jsonl", ["a"]))).train.digest() == one
    assert corpus.find(str(tmp_path / "a.jsonl"), field="title").train.digest() != one
    assert corpus.find(str(lines(tmp_path / "c.jsonl", ["c"]))).train.digest() != one


def test_made_up_text_is_always_the_same_and_not_one_text():
    first, again = list(synthetic_text.documents()), list(synthetic_text.documents())
    assert first == again and len(set(first)) == synthetic_text.DOCUMENTS
    assert all(200 < len(text) < 3000 for text in first)
    assert corpus.find(corpus.SYNTHETIC).train.digest() == f"synthetic {synthetic_text.VERSION}"
