"""Where a model comes from: paths are never names on the hub, weights are hashed, tokenizers must fit."""

import json

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from dmabench.tasks.downstream import checkpoints
from dmabench.tasks.downstream.checkpoints import check, check_name, find, load
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the weights of a tiny model and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("models") / "swa"
    DmabenchForCausalLM(model_config("tiny", "swa")).save_pretrained(folder)
    checkpoints._byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./model", "there is no folder"),
        ("/no/such/model", "there is no folder"),
        ("runs/model", "there is no folder"),
        ("a/b/c", "there is no folder"),
        ("~/model", "there is no folder"),
        ("empty", "no config.json"),
        ("bare", "no weights"),
        ("empty/file", "is a file"),
    ],
)
def test_a_path_is_never_taken_for_a_name(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "empty", "bare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "empty" / "file").touch()
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=told):
        check_name(name)


def test_names_on_the_hub_pass():
    for name in ("gpt2", "Qwen/Qwen3-0.6B", "untrained:tiny:mha"):
        check_name(name)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("no route"), "no route"),
        (LocalEntryNotFoundError("set HF_HUB_OFFLINE=0"), "it cannot be reached, and the model was not fetched before"),
    ],
)
def test_a_name_that_the_hub_does_not_give_says_both(monkeypatch, error, told):
    import huggingface_hub

    def unreachable(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=rf"no folder org/model here, and the hub .* \({told}\)"):
        find("org/model")


def test_the_hash_is_that_of_the_weights(saved, tmp_path):
    before = find(str(saved))
    assert len(before.weights) == 16 and before == find(str(saved))
    other = tmp_path / "other"
    model = load(before, "cpu").model
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(other)
    assert find(str(other)).weights != before.weights


def test_untrained_models_are_the_same_each_time():
    first, second = (load(find("untrained:tiny:mha"), "cpu", "bf16").model for _ in range(2))
    assert first.dtype == torch.bfloat16 and first.config.attention == "mha"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_tokenizer_of_bytes_loses_nothing():
    tokenizer = checkpoints._byte_tokenizer()
    text = "héllo\n\t wörld\x00 …"
    numbers = tokenizer.encode(text)
    assert len(numbers) == len(text.encode()) and tokenizer.decode(numbers) == text and len(tokenizer) == 256


def test_what_cannot_be_scored_is_told_before_loading(saved, tmp_path):
    check(find(str(saved)), [None, 4])
    with pytest.raises(ValueError, match=r"no window to set \(its attention is mha"):
        check(find("untrained:tiny:mha"), [8])
    with pytest.raises(ValueError, match="known are"):
        check(find("untrained:huge"))
    bare = tmp_path / "bare"
    DmabenchForCausalLM(model_config("tiny", "swa")).save_pretrained(bare)
    with pytest.raises(ValueError, match=r"no tokenizer .* --tokenizer DIR"):
        check(find(str(bare)))
    check(find(str(bare)), (), str(saved))
    with pytest.raises(ValueError, match="there is no such folder"):
        check(find(str(bare)), (), str(tmp_path / "none"))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    DmabenchForCausalLM(model_config("tiny", "swa", vocab_size=100)).save_pretrained(tmp_path)
    checkpoints._byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="256 tokens and the model knows 100"):
        load(find(str(tmp_path)), "cpu")


def test_weights_that_do_not_fit_are_refused(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(find(str(tmp_path)), "cpu")
