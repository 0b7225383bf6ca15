"""Language training as a task: what is refused and filled in, what a cell reports, resuming, and what it saves."""

import itertools
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmabench.tasks import language, token_cache
from dmabench.tasks.language import TASK
from dmabench.tasks.language_stages import stages_of
from dmabench.tasks.task import Tools
from dmabench.tasks.train import train

ROW = {
    "accuracy",
    "perplexity",
    "bits_per_byte",
    "test_loss",
    "chance",
    "validation_accuracy",
    "validation_loss",
    "loss",
}
ROW |= {"trained_tokens", "train_s", "tokens_per_s", "stopped", "parameters", "density", "sparsity_active", "infer_ms"}
NAMES = ["Ann", "Ben", "Cleo", "Dan"]


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """A few lines of text that repeats itself, as JSON lines."""
    folder = tmp_path_factory.mktemp("books")
    lines = [
        f"{NAMES[n % 4]} went to the {place} and {NAMES[n % 3]} went home. Then {NAMES[n % 4]} saw the {place} again."
        for n in range(60)
        for place in ("river", "market", "old house")
    ]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DMABENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def cell(books):
    def make(**changes):
        settings = dict.fromkeys((axis.name for axis in TASK.axes), None)
        settings |= {"size": "tiny", "attention": "dma", "data": str(books), "text_field": "text", "strict": False}
        settings |= {"vocab": 300, "seqlen": 32, "tokens": 1024.0, "step_tokens": 128, "lr": 1e-2, "stage2_tokens": 0.0}
        settings |= {"heldout_tokens": 500, "positions": "rope", "short_conv": 0, "seed": 0, "nsa": "equal"}
        return TASK.complete({**settings, **changes})

    return make


def run(settings, folder, tools=None):
    assert TASK.refusal(settings) is None
    (row,) = TASK.run(settings, tools or Tools("cpu", folder))
    return row


def same(row):
    return {name: value for name, value in row.items() if not name.endswith("_s")}


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "nsa", "dma"])
def test_a_cell_is_one_row_and_a_checkpoint(tmp_path, cell, attention):
    settings = cell(attention=attention, window=16 if attention in ("swa", "nsa", "dma") else None)
    stages = []
    tools = Tools("cpu", tmp_path, lambda told: stages.append(told.stage), lambda call: (call(), 1.5)[1])
    row = run(settings, tmp_path, tools)
    assert set(row) >= ROW and not set(row) & set(settings)
    assert row["trained_tokens"] == TASK.cost(settings).tokens == 1024 and row["steps_done"] == 8
    assert row["perplexity"] == pytest.approx(math.exp(row["test_loss"]))
    assert row["bits_per_byte"] == pytest.approx(
        row["test_loss"] / math.log(2) * row["test_tokens"] / row["test_bytes"]
    )
    assert row["test_tokens"] <= 500 and row["position_from"] == [0, 16] and row["infer_ms"] == 1.5
    assert {"train", "validate", "score", "time"} <= set(stages)
    model, words = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.attention == attention and len(words) == 300 and model.config.vocab_size == 320
    assert model.config.eos_token_id == words.eos_token_id
    about = json.loads((tmp_path / "model" / "training.json").read_text())
    assert len(about["loss"][0]) == 8 and about["settings"]["data"] == "a.jsonl"
    (looks,) = about["validation"]
    assert row["curve_tokens"] == [look["tokens"] for look in looks] == list(range(128, 1025, 128))
    assert row["curve_loss"] == pytest.approx([look["loss"] for look in looks], rel=1e-5)
    assert looks[-1]["loss"] == row["validation_loss"] and looks[-1]["accuracy"] == row["validation_accuracy"]


def test_loss_falls_steadily(tmp_path, cell):
    settings = cell(tokens=200 * 128.0, attention="mha")
    row = run(settings, tmp_path)
    (curve,) = json.loads((tmp_path / "model" / "training.json").read_text())["loss"]
    assert len(curve) == 200
    means = [sum(curve[at : at + 40]) / 40 for at in range(0, 200, 40)]
    assert all(later < earlier for earlier, later in itertools.pairwise(means)), means
    assert row["test_loss"] < 0.5 * curve[0] and row["epochs"] > 1


class Stops(Exception):
    pass


@pytest.mark.parametrize("stage", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, cell, monkeypatch, stage):
    settings = cell(stage2_tokens=512.0, stage2_seqlen=64)
    whole = run(settings, tmp_path / "whole")

    def stopping(model, examples, recipe, tools, validate):
        if tools.folder.name != f"stage{stage}":
            return train(model, examples, recipe, tools, validate)

        def batch(step, size):
            if step == recipe.steps - 1:
                raise Stops
            return examples.batch(step, size)

        monkeypatch.setattr("dmabench.tasks.train.LOOK_S", 0)
        monkeypatch.setattr("dmabench.tasks.train.SAVE_S", 0)
        return train(model, type("Cut", (), {"batch": staticmethod(batch)})(), recipe, tools, validate)

    with monkeypatch.context() as patch:
        patch.setattr(language, "train", stopping)
        with pytest.raises(Stops):
            run(settings, tmp_path / "cut")
    assert (tmp_path / "cut" / f"stage{stage}" / "checkpoint.pt").exists()
    assert not (tmp_path / "cut" / "model").exists()
    assert same(run(settings, tmp_path / "cut")) == same(whole)
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("whole", "cut"))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_second_stage_has_its_own_length_positions_window_and_text(tmp_path, cell):
    settings = cell(stage2_tokens=1024.0)
    assert (settings["stage2_seqlen"], settings["stage2_rope_base"], settings["stage2_window"]) == (128, 1e5, 16)
    first, second = stages_of(settings)
    assert (first.steps, first.batch, second.steps, second.batch) == (8, 4, 8, 1)
    assert second.lr == pytest.approx(first.lr / 3)
    row = run({**settings, "stage2_window": 24}, tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "model").config
    assert config.rope_parameters["rope_theta"] == 1e5 and config.window == 24
    assert row["trained_tokens"] == 2048 and row["steps_done"] == 16
    assert row["curve_tokens"] == list(range(128, 2049, 128)) and len(row["curve_loss"]) == 16


def test_what_follows_is_filled_in(cell, tmp_path):
    found = cell(seqlen=256, window=None)
    assert (found["window"], found["batch"], found["step_tokens"]) == (16, 1, None)  # of tiny
    found = cell(size="30M", seqlen=1024, window=None, vocab=None)
    assert (found["window"], found["vocab"]) == (256, 8192)
    assert cell(size="30M", seqlen=4096, window=None)["window"] == 512
    assert cell(attention="mha")["window"] is None
    assert cell(tokenizer="bytes")["vocab"] is None
    assert cell(init_from=str(tmp_path))["tokenizer"] == str(tmp_path) and cell(init_from=str(tmp_path))["size"] is None
    assert all(value is None for name, value in cell().items() if name.startswith("stage2_"))


def test_rates_of_both_stages_are_one_choice(cell):
    """What follows from the first rate stays out of the settings: they would differ in more than the rate."""
    first, second = (cell(stage2_tokens=512.0, stage2_seqlen=64, lr=lr) for lr in (3e-3, 6e-3))
    assert {name for name in first if first[name] != second[name]} == {"lr"}
    assert [stages_of(one)[1].lr for one in (first, second)] == pytest.approx([1e-3, 2e-3])
    assert stages_of({**first, "stage2_lr": 5e-4})[1].lr == 5e-4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": "/missing.jsonl"}, "there is no such file or folder"),
        ({"heldout": "/missing.jsonl"}, "--heldout /missing.jsonl: there is no such file"),
        ({"tokenizer": "/missing"}, "there is no such folder"),
        ({"tokens": 100.0}, "100 tokens are fewer than one step of 4 sequences of 32"),
        ({"stage2_tokens": 100.0}, "100 tokens are fewer than one step of 1 sequences of 128"),
        ({"attention": "nsa", "window": 8}, "the least is 16"),
        ({"init_from": "/missing"}, "/missing has no config.json: --init-from takes the folder"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(cell, changes, told):
    assert told in TASK.refusal(cell(**changes))


def test_text_shorter_than_a_sequence_and_broken_lines(cell, tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "a few words of text here"}\n{broken\n')
    with pytest.raises(ValueError, match=r"tokens of training text are fewer than one sequence of 32"):
        TASK.prepare(cell(data=str(path)), lambda sentence: None)
    short = cell(data=str(path), seqlen=4, vocab=257, window=16)
    note = "1 part of the text skipped: short.jsonl line 2: no JSON"
    assert TASK.prepare(short, lambda sentence: None) == note
    assert run(short, tmp_path / "run")["note"] == note
    with pytest.raises(ValueError, match="line 2: no JSON; repair"):
        TASK.prepare({**short, "strict": True}, lambda sentence: None)


def test_prepared_once_for_all_cells(cell, monkeypatch):
    assert TASK.prepare(cell(), lambda sentence: None) is None
    monkeypatch.setattr(token_cache, "_write", lambda *_: pytest.fail("tokenised again"))
    for attention in ("mha", "dma"):
        TASK.prepare(cell(attention=attention, seed=3), lambda sentence: None)


def test_defaults_and_presets_name_axes_only_and_can_be():
    names = {axis.name for axis in TASK.axes}
    for blocks in [TASK.defaults.values(), *(preset.blocks for preset in TASK.presets.values())]:
        for block in blocks:
            assert set(block) <= names
    assert set(TASK.presets) == {"quick", "h100", "paper-1.7b"}


@pytest.fixture
def qwen(tmp_path, books):
    """A small Qwen3 checkpoint with a tokenizer of its own."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from dmabench.tasks import tokenizer

    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    tokenizer.train([books.read_text()], 300).save(tmp_path / "qwen")
    return tmp_path / "qwen"


def test_from_a_checkpoint_with_its_tokenizer(cell, qwen, tmp_path):
    assert "mla has other projections" in TASK.refusal(cell(init_from=str(qwen), attention="mla"))
    settings = cell(init_from=str(qwen), window=16, tokens=256.0)
    assert TASK.cost(settings).tokens == 256
    row = run(settings, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert (row["vocabulary"], model.config.attention, model.config.hidden_size) == (300, "dma", 32)


def test_a_checkpoint_with_another_tokenizer_is_refused(cell, qwen, tmp_path):
    for name in ("bytes", "trained"):
        settings = cell(init_from=str(qwen), window=16, tokenizer=name)
        with pytest.raises(ValueError, match=f"was trained with another tokenizer than {name}"):
            TASK.prepare(settings, lambda sentence: None)


def test_a_tokenizer_with_more_tokens_than_the_checkpoint_is_refused(cell, qwen, tmp_path, books):
    from dmabench.tasks import tokenizer

    tokenizer.train([" ".join(map(str, range(9999)))], 330).save(qwen)
    settings = cell(init_from=str(qwen), window=16)
    with pytest.raises(ValueError, match=r"has 330 tokens and the model in .* knows 320: they do not belong together"):
        TASK.prepare(settings, lambda sentence: None)


def test_more_accumulation_gives_the_same_training(cell, tmp_path, monkeypatch):
    one = run(cell(), tmp_path / "one")
    monkeypatch.setattr(language, "AT_ONCE", 32)
    parts = run(cell(), tmp_path / "parts")
    assert parts["test_loss"] == pytest.approx(one["test_loss"], rel=1e-3)
