"""Tuned configurations of the Triton kernels: kept in a user's cache, and taken by calls they were made for alone."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from dmabench.kernels.dma_triton import configs, tuned
from dmabench.kernels.dma_triton.tuned import Config, Key

CAPABILITY = (9, 9)
KEY = Key("A card", "3.6.0", "bfloat16", 128, "0123")
ONE, TWO = Config(128, 32, 8, 3, 2, True), Config(64, 64, 4, 2)
BF16, CUDA = torch.bfloat16, torch.device("cuda:0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path))
    configs.forget()
    yield tmp_path
    configs.forget()


@pytest.fixture
def a_card(monkeypatch):
    """A CUDA device of which configs asks name and memory."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setattr(configs, "shared_memory", lambda device: configs.HOPPER)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CAPABILITY)
    return configs.key_of(128, BF16, CUDA)


def test_what_is_stored_is_read_for_the_same_key_alone():
    assert tuned.read(KEY) == {}
    tuned.store(KEY, {"forward": ONE, "keys": TWO}, {"ms": 1.5})
    assert tuned.read(KEY) == {"forward": ONE, "keys": TWO}
    for field, other in (("device", "B"), ("triton", "3.9.0"), ("dtype", "float16"), ("head_dim", 64), ("sources", "")):
        assert tuned.read(KEY._replace(**{field: other})) == {}


def test_later_winners_replace_those_of_the_same_kernel_and_key():
    other = KEY._replace(head_dim=64)
    tuned.store(KEY, {"forward": ONE, "keys": TWO}, {})
    tuned.store(other, {"forward": ONE}, {})
    file = tuned.store(KEY, {"forward": TWO}, {"shape": {"seqlen": 8}})
    assert tuned.read(KEY) == {"forward": TWO, "keys": TWO} and tuned.read(other) == {"forward": ONE}
    entries = json.loads(file.read_text())
    assert len(entries) == 3 and entries[-1]["shape"] == {"seqlen": 8}
    assert [path.name for path in file.parent.iterdir()] == ["triton-configs.json"]
    with pytest.raises(ValueError, match="backwards is none of"):
        tuned.store(KEY, {"backwards": ONE}, {})


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[1]",
        json.dumps([{**KEY._asdict(), "kernel": "forward", **asdict(ONE), "block_m": 100}]),
        json.dumps([{**KEY._asdict(), "kernel": "forward", **asdict(TWO), "block_n": 128}]),
    ],
    ids=["half", "no list", "no entries", "no configuration", "not of this kernel"],
)
def test_a_damaged_cache_is_left_out_with_a_warning_and_can_be_written_again(content):
    tuned.path().write_text(content)
    with pytest.warns(UserWarning, match=r"triton-configs.json cannot be read.*run dmabench tune again"):
        assert tuned.read(KEY) == {}
    tuned.store(KEY, {"forward": TWO}, {})
    assert tuned.read(KEY) == {"forward": TWO}


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert tuned.path() == tmp_path / "triton-configs.json"
    monkeypatch.delenv("DMABENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuned.path() == tmp_path / "xdg" / "dmabench" / "triton-configs.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned.path() == tmp_path / ".cache" / "dmabench" / "triton-configs.json"


@pytest.mark.parametrize(
    "sizes",
    [
        (96, 64, 4, 2),
        (128, 48, 4, 2),
        (128, 64, 3, 2),
        (128, 64, 64, 2),
        (128, 64, 4, 0),
        (128, 64, 4, 2, 0),
        (True, 64, 4, 2),
        (128, 64.0, 4, 2),
        (128, 64, 4, 2, 1, 1),
        (128, 64, 4, 2, 1, False, 1),
    ],
)
def test_sizes_that_no_kernel_takes_are_refused(sizes):
    with pytest.raises(ValueError, match="no configuration"):
        Config(*sizes)


def test_what_one_kernel_takes_another_may_not():
    wide = Config(32, 128, 8, 2)
    tuned.store(KEY, {"keys": wide}, {})
    assert tuned.read(KEY) == {"keys": wide}
    even, small = replace(TWO, even=True), Config(32, 32, 8, 2, even=True)
    for kernel, config in (("forward", wide), ("queries", wide), ("keys", ONE), ("queries", even), ("keys", small)):
        with pytest.raises(ValueError, match="no configuration of the kernel"):
            tuned.store(KEY, {kernel: config}, {})


def test_calls_take_the_users_winners_then_the_committed_ones_then_the_table(a_card, monkeypatch):
    table = configs.choose(128, BF16, configs.HOPPER)
    assert configs.for_call(128, BF16, CUDA, 2) == table
    monkeypatch.setattr(configs, "MEASURED", {CAPABILITY: {128: configs.Configs(TWO, TWO, table.keys)}})
    tuned.store(a_card, {"forward": ONE}, {})
    configs.forget()
    found = configs.for_call(128, BF16, CUDA, 2)
    assert (found.forward, found.queries, found.keys) == (ONE, TWO, table.keys)
    # Three heads share a key/value head: two a program do not divide them.
    assert configs.for_call(128, BF16, CUDA, 3).forward == TWO
    # What was measured with lists of keys is for them.
    assert found.by_query(gathers=True) == (ONE, TWO) and found.by_query(gathers=False) == table.by_query(False)
    for other in (configs.for_call(64, BF16, CUDA, 2), configs.choose(64, BF16, configs.HOPPER, CAPABILITY)):
        assert other == configs.choose(64, BF16, configs.HOPPER)
    fp32 = configs.choose(128, torch.float32, configs.HOPPER)
    assert configs.choose(128, torch.float32, configs.HOPPER, CAPABILITY) == fp32
    assert configs.for_call(128, BF16, torch.device("cpu"), 2) == table


def test_the_cache_is_read_once(a_card, monkeypatch):
    reads = []
    monkeypatch.setattr(tuned, "read", lambda key: reads.append(key) or {})
    for _ in range(3):
        configs.for_call(128, BF16, CUDA, 2)
    assert reads == [a_card]


def test_winners_are_of_the_sources_they_were_measured_with(a_card, monkeypatch):
    tuned.store(a_card, {"forward": ONE}, {})
    monkeypatch.setattr(tuned, "sources", lambda: "changed")
    assert configs.for_call(128, BF16, CUDA, 2) == configs.choose(128, BF16, configs.HOPPER)


def test_forced_configurations_end_with_their_block(a_card):
    table = configs.choose(128, BF16, configs.HOPPER)
    other = configs.Configs(TWO, TWO, TWO)
    with pytest.raises(KeyError), configs.forced(other):
        assert configs.for_call(128, BF16, CUDA, 2) == other
        raise KeyError
    assert configs.for_call(128, BF16, CUDA, 2) == table
