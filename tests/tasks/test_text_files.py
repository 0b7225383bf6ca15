"""Texts in files: every packing, broken lines, damage, what is refused by its name or its fields."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from dmabench.tasks import text_files
from dmabench.tasks.text_problems import NAMED, Problems

TEXTS = ["One day.", "Zwei Tage, grün.", "三日。"]
LINES = "".join(json.dumps({"title": "x", "text": text}) + "\n" for text in TEXTS).encode()


def zstd(data):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def read(path, strict=False, field="text"):
    problems = Problems(strict)
    return list(text_files.documents(path, field, problems)), problems


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)],
)
def test_json_lines_and_plain_text_as_they_are_and_packed(tmp_path, suffix, pack):
    if suffix == ".zst":
        pytest.importorskip("pyarrow")
    assert read(write(tmp_path / f"a.jsonl{suffix}", pack(LINES)))[0] == TEXTS
    assert read(write(tmp_path / f"a.txt{suffix}", pack(TEXTS[1].encode())))[0] == [TEXTS[1]]
    assert read(write(tmp_path / f"no_end_of_line.jsonl{suffix}", pack(LINES.rstrip())))[0] == TEXTS


def test_lines_longer_than_a_block_of_zstd(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(text_files, "BLOCK", 7)
    assert read(write(tmp_path / "a.jsonl.zst", zstd(LINES)))[0] == TEXTS


def test_broken_lines_are_counted_named_and_skipped(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"",
        b"{broken",
        b'["a list"]',
        b'{"text": 3}',
        b'{"text": "  "}',
        b'{"text": "\\ud800"}',
        b"\xff\xfe",
        b'{"text": "good too"}',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    texts, problems = read(path)
    assert texts == ["good", "good too"]
    assert problems.count == 6
    assert problems.places[0] == "a.jsonl line 3: no JSON"
    assert len(problems.places) == NAMED
    assert problems.sentence.startswith("6 parts of the text skipped: a.jsonl line 3: no JSON; a.jsonl line 4: no text")
    assert problems.sentence.endswith("and 1 more")
    with pytest.raises(ValueError, match=r"a.jsonl line 3: no JSON; repair it, or leave out --strict"):
        read(path, strict=True)


def test_a_field_that_no_line_has_is_refused_with_those_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    with pytest.raises(ValueError, match=r"field 'body'; the fields are text, title: name the right one"):
        read(path, field="body")
    assert read(path, field="title")[0] == ["x"] * 3


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".zst", zstd)])
def test_damaged_files_are_refused_by_name(tmp_path, suffix, pack):
    if suffix == ".zst":
        pytest.importorskip("pyarrow")
    whole = pack(LINES * 50)
    for name, data in {"half": whole[: len(whole) // 2], "other": b"no such packing"}.items():
        with pytest.raises(ValueError, match=rf"{name}.jsonl{suffix} (is damaged|cannot be read)"):
            read(write(tmp_path / f"{name}.jsonl{suffix}", data))


def test_plain_text_must_be_utf8(tmp_path):
    texts, problems = read(write(tmp_path / "a.txt", b"caf\xe9"))
    assert texts == [] and "a.txt: no UTF-8 (byte 3)" in problems.places
    assert read(write(tmp_path / "b.txt", b"\xef\xbb\xbfmarked"))[0] == ["marked"]


def test_what_a_name_and_a_size_tell(tmp_path):
    with pytest.raises(ValueError, match=r"a.parquet is no text that can be read here: JSON lines"):
        text_files.check(write(tmp_path / "a.parquet", b"x"))
    with pytest.raises(ValueError, match=r"a.jsonl is empty"):
        text_files.check(write(tmp_path / "a.jsonl", b""))
    names = ["a.jsonl.xz", "b.TXT", "README.md", "LICENSE", ".hidden.txt", "c.bin", "d.md"]
    taken = [name for name in names if text_files.is_text(write(tmp_path / name, b"x"))]
    assert taken == ["a.jsonl.xz", "b.TXT", "d.md"]


def test_the_digest_is_of_the_content(tmp_path):
    one = text_files.digest(write(tmp_path / "a", b"1"))
    assert text_files.digest(write(tmp_path / "b", b"1")) == one
    assert text_files.digest(write(tmp_path / "c", b"22")) != one
    assert text_files.digest(Path(write(tmp_path / "a", b"changed"))) != one
