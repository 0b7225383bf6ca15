"""Needles in text for models that are trained already: ours and others, what they get, and what is refused."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dmabench.errors import Refusal
from dmabench.tasks import needle_models, needle_wording, synthetic_text, tokenizer
from dmabench.tasks.downstream.checkpoints import Loaded, find
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.needle import TASK
from dmabench.tasks.presets import model_config
from dmabench.tasks.scored_models import label, last_logits
from dmabench.tasks.task import Tools
from dmabench.trials.cells import blocks_of, make_trials

WORDS = tokenizer.train([*synthetic_text.documents()][:40], 300)
SIZE = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints with random weights: two of ours, two of Hugging Face's."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for kind in ("mha", "dma"):
        config = model_config("tiny", kind, vocab_size=320, window=64, max_position_embeddings=700)
        DmabenchForCausalLM(config).save_pretrained(root / kind / "model")
        WORDS.save(root / kind / "model")
    LlamaForCausalLM(LlamaConfig(**SIZE, intermediate_size=16, max_position_embeddings=640)).save_pretrained(
        root / "llama"
    )
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=640)).save_pretrained(
        root / "gpt2"
    )
    for name in ("llama", "gpt2"):
        WORDS.save(root / name)
    return root


def cells(**given):
    given = {"test_len": "640", "depth": "0,100", "kind": "single,multi-value", "samples": "3", "needles": "2"} | given
    return make_trials(TASK, blocks_of(TASK, None, given, "cpu"))


def run(tmp_path, time_ms=None, **given):
    (trial,) = cells(**given)
    assert trial.refusal is None
    return TASK.run(trial.settings, Tools("cpu", tmp_path, time_ms=time_ms))


class Reader(nn.Module):
    """A model from outside that looks up the numbers of the keys that the question is about, in the order of the text.

    It misses every needle before the last `sight` tokens.
    """

    def __init__(self, sight=10_000):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.sight = sight
        self.config = GPT2Config(vocab_size=320, n_positions=2000)
        self.dtype = torch.float32

    def forward(self, input_ids, use_cache, logits_to_keep):
        assert use_cache is False
        logits = torch.zeros(len(input_ids), logits_to_keep, 320)
        for row, ids in enumerate(input_ids.tolist()):
            for at in range(logits_to_keep):
                seen = ids[: len(ids) - logits_to_keep + 1 + at]
                logits[row, at, self.next(seen)] = 15.0
        return SimpleNamespace(logits=logits)

    def next(self, seen):
        text = WORDS.tokenizer.backend_tokenizer.decode(seen[-self.sight :], skip_special_tokens=False)
        hay, question = text.rsplit("\nWhat ", 1)
        keys = re.findall(r"[a-z]+-[a-z]+", question.split("?")[0])
        needles = re.findall(r"for ([a-z]+-[a-z]+) is: (\d{7})\.", hay)
        values = [value for key in keys for one, value in needles if one == key]
        begun = re.split(r"\? The .* provided text (?:is|are)", question)[1]
        if not values:
            return 0
        ids = WORDS.tokenizer.backend_tokenizer.encode(f" {needle_wording.listed(values)}").ids
        return ids[len(WORDS.tokenizer.backend_tokenizer.encode(begun).ids)] if begun else ids[0]


@pytest.fixture
def loaded(folders, monkeypatch):
    """Puts a model in the place of the one that is loaded."""

    def put(model):
        monkeypatch.setattr(needle_models.checkpoints, "load", lambda *_, **__: Loaded(model, WORDS.tokenizer))

    return put


def test_a_reader_finds_every_needle(tmp_path, folders, loaded):
    loaded(Reader())
    rows = run(tmp_path, model=str(folders / "gpt2"), kind="single,multi-key,multi-value,multi-query")
    assert len(rows) == 8
    for row in rows:
        assert (row["accuracy"], row["all_questions"], row["rank"], row["correct"], row["total"]) == (1, 1, 1, 3, 3)
        assert -0.1 < row["logprob"] < 0 and row["chance"] == 1 / 9e6
        assert row["copy_chance"] == (None if row["kind"] == "single" else 1 / 2)
        assert row["within"] == 1 and row["effective_length"] == 640


def test_a_reader_that_sees_the_end_alone_misses_needles_at_the_beginning(tmp_path, folders, loaded):
    loaded(Reader(sight=420))
    rows = run(tmp_path, model=str(folders / "gpt2"), kind="single")
    assert [(row["depth"], row["accuracy"]) for row in rows] == [(0, 0), (100, 1)]


@pytest.mark.parametrize(
    ("name", "attention", "window", "sparse"),
    [("mha/model", "mha", None, False), ("dma/model", "dma", 64, True), ("llama", "mha", None, False)],
)
def test_rows_tell_the_model_and_what_it_was_asked(tmp_path, folders, name, attention, window, sparse):
    folder = str(folders / name)
    rows = run(tmp_path, model=folder)
    assert [(row["test_len"], row["kind"], row["depth"]) for row in rows] == [
        (640, kind, depth) for kind in ("single", "multi-value") for depth in (0, 100)
    ]
    for row in rows:
        assert (row["attention"], row["window"], row["sparsity_active"]) == (attention, window, sparse)
        assert row["haystack"] == "text" and row["text"] == "synthetic" and row["text_tokens"] >= 640
        assert row["weights"] == find(folder).weights and row["model"] == label(find(folder))
        assert row["model"] == f"{name.split('/')[0]}@{row['weights'][:6]}"
        assert (row["density"] == 1) is not sparse and row["total"] == 3 and row["infer_ms"] is None
        assert row["train_len"] == {"llama": 640}.get(name, 700) and 1 <= row["rank"] <= row["candidates"]


def test_models_with_one_tokenizer_meet_the_same_haystacks(tmp_path, folders, monkeypatch):
    asked = []

    def recorded(model, input_ids, index):
        asked[-1].append(input_ids)
        return last_logits(model, input_ids, index)

    monkeypatch.setattr(needle_models, "last_logits", recorded)
    keys = set()
    for name in ("mha/model", "dma/model", "llama", "gpt2"):
        asked.append([])
        keys |= {row["haystack_key"] for row in run(tmp_path, model=str(folders / name))}
    assert len(keys) == 1 and len(asked[0]) >= 4
    for other in asked[1:]:
        assert torch.equal(torch.cat(asked[0]), torch.cat(other))


def test_lengths_beyond_a_models_positions_are_rows_without_a_score(tmp_path, folders):
    rows = run(tmp_path, model=str(folders / "gpt2"), test_len="640,800", kind="single")
    assert [(row["test_len"], row.get("status")) for row in rows] == [(640, None), (640, None), (800, "UNSUPPORTED")]
    assert rows[2]["reason"] == "gpt2 has positions for 640 tokens: --test-len 800 is too long"
    assert "accuracy" not in rows[2] and rows[2]["kind"] == "single" and rows[2]["attention"] == "mha"


def test_another_window_is_set_and_told(tmp_path, folders):
    (own, other) = (run(tmp_path, model=str(folders / "dma/model"), **more) for more in ({}, {"window": "16"}))
    assert [own[0]["window"], other[0]["window"]] == [64, 16] and other[0]["density"] < own[0]["density"]
    assert own[0]["logprob"] != other[0]["logprob"]


def test_a_forward_is_timed_once_a_length(tmp_path, folders):
    calls = []
    rows = run(tmp_path, lambda call: calls.append(call()) or 7.0, model=str(folders / "gpt2"), test_len="600,640")
    assert {row["infer_ms"] for row in rows} == {7.0} and rows[0]["infer_batch"] == (1 << 12) // 600
    assert len(calls) == 2 and all(len(logits) == row["infer_batch"] for logits, row in zip(calls, rows, strict=False))


def test_models_without_a_window_are_scored_once_whatever_the_window(folders):
    found = cells(model=f"{folders / 'mha/model'},{folders / 'dma/model'},{folders / 'llama'}", window="16,32")
    assert [(trial.settings["model"].removeprefix(f"{folders}/"), trial.settings["window"]) for trial in found] == [
        *(("mha/model", None), ("dma/model", 16), ("llama", None), ("dma/model", 32))
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "no/such/folder"}, "there is no folder no/such/folder"),
        ({"data": "no-such.txt"}, "--data no-such.txt: there is no such file or folder"),
        ({"depth": "50,101"}, "--depth 101 is not within 0"),
        ({"test_len": "800"}, "gpt2 has positions for 640 tokens: --test-len 800 is too long"),
        ({"tokenizer": "nowhere"}, "--tokenizer nowhere: there is no such folder"),
        ({"lr": "1e-3"}, "--model scores models that are trained already: leave out --lr"),
        ({"attention": "mha"}, "leave out --attention"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(folders, given, told):
    name = given.get("model", "gpt2")
    with pytest.raises(Refusal, match=told):
        cells(**given | {"model": name if "/" in name else str(folders / name)})


def test_text_and_presets_go_without_models():
    with pytest.raises(Refusal, match="--data goes with --model, which scores models that are trained already"):
        blocks_of(TASK, None, {"data": "synthetic"}, "cpu")
    with pytest.raises(Refusal, match="leave out --preset h100"):
        blocks_of(TASK, "h100", {"model": "untrained:tiny"}, "cpu")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"data": "short.txt"}, "the text short.txt has .* too few for a haystack of 640"),
        ({"test_len": "100,640"}, "--test-len 100 is too short for --kind single"),
        ({"data": "lines.jsonl"}, "no line of lines.jsonl has a text in the field 'text'"),
    ],
)
def test_text_that_does_not_serve_refuses_the_run_before_it_starts(folders, tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("A short text. It has two sentences.")
    (tmp_path / "lines.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    (trial,) = cells(model=str(folders / "gpt2"), **given)
    said = []
    with pytest.raises(ValueError, match=told):
        TASK.prepare(trial.settings, said.append)
    assert said == ["looking at gpt2 and the text"]


def test_a_model_on_the_hub_is_not_asked_for_before_the_run():
    (trial,) = cells(model="some-org/some-model")
    assert trial.refusal is None and trial.cost.flops == 0


def test_cost_is_that_of_scoring(folders):
    base, longer = (cells(model=str(folders / "mha/model"), test_len=text)[0].cost for text in ("640", "640,700"))
    assert base.tokens == 0 and 0 < base.flops < longer.flops and base.mib > 0
    outside = cells(model=str(folders / "llama"))[0].cost
    # Weights are float32: two operations a parameter and token, and attention above it.
    weights = (folders / "llama" / "model.safetensors").stat().st_size / 4
    assert outside.flops > 2 * weights * 640 * 12
