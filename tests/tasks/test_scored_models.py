"""Models that are trained already: their logits at the end, their names, lengths and attentions."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig

from dmabench.tasks import scored_models
from dmabench.tasks.downstream.checkpoints import Loaded, Source
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config
from dmabench.tasks.scored_models import about, attention_of, config_of, facts, label, last_logits, too_long
from dmabench.tasks.scoring import at_labels, predict

SIZE = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MAKERS = {
    "ours": lambda: DmabenchForCausalLM(model_config("tiny", "dma", vocab_size=300)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, intermediate_size=16)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)),
}


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_logits_of_the_end_are_those_of_the_whole(name, keeps, monkeypatch):
    if not keeps:
        monkeypatch.setattr(scored_models, "takes_logits_to_keep", lambda model: False)
    torch.manual_seed(0)
    model = MAKERS[name]().eval()
    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, -100)
    labels[0, 30:33], labels[1, 35:], labels[2, 31] = 7, 8, 9
    found = predict(model, ids, labels, 2, logits=last_logits)
    with torch.no_grad():
        whole = model(input_ids=ids).logits.log_softmax(-1)
    where = labels >= 0
    torch.testing.assert_close(found.logprob, whole[where].gather(1, labels[where][:, None])[:, 0])
    assert torch.equal(found.predicted, whole[where].argmax(-1))
    if name == "ours":
        torch.testing.assert_close(found.logprob, predict(model, ids, labels, logits=at_labels).logprob)


def test_the_trained_length_is_that_of_the_training_where_it_is_told(tmp_path):
    def length(config, folder=None):
        return scored_models.trained_length(Source("x", folder, ""), config)

    assert length(model_config("tiny", "mha")) == 32768
    assert length(model_config("tiny", positions="yarn", trained_positions=64)) == 64
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    assert length(LlamaConfig(**SIZE, max_position_embeddings=512, rope_parameters=rope)) == 128
    for settings, expected in (
        ({"seqlen": 128, "stage2_tokens": 0, "stage2_seqlen": None}, 128),
        ({"seqlen": 128, "stage2_tokens": 9, "stage2_seqlen": 512}, 512),
    ):
        (tmp_path / "training.json").write_text(json.dumps({"settings": settings}))
        assert length(model_config("tiny"), tmp_path) == expected


def test_models_are_dense_only_where_every_layer_is():
    assert attention_of(model_config("tiny", "swa:1,mha:1")) == "swa:1,mha:1"
    assert attention_of(LlamaConfig(**SIZE)) == "mha"
    assert attention_of(MistralConfig(**SIZE, sliding_window=32)) == "mistral"
    assert attention_of(MistralConfig(**SIZE, sliding_window=None)) == "mha"


def test_positions_end_where_the_configuration_says():
    assert too_long("a/b", GPT2Config(n_positions=64), 64) is None
    assert too_long("a/b", GPT2Config(n_positions=64), 65) == "b has positions for 64 tokens: --test-len 65 is too long"
    stretched = model_config("tiny", positions="yarn", trained_positions=64, yarn_factor=4.0)
    assert too_long("x", stretched, 256) is None and "256" in too_long("x", stretched, 257)
    assert too_long("x", model_config("tiny", positions="none"), 1 << 20) is None


def test_two_folders_named_model_have_names_of_their_own(tmp_path):
    for cell in ("one", "two"):
        (tmp_path / cell / "model").mkdir(parents=True)
    names = [label(Source(str(path), path, "abcdef1234")) for path in sorted(tmp_path.glob("*/model"))]
    assert names == ["one@abcdef", "two@abcdef"]
    assert label(Source("untrained:tiny", None, "untrained:tiny")) == "untrained:tiny"
    assert label(Source("org/name", Path("/cache/snapshots/1"), "abcdef1234")) == "org/name"


def test_a_row_says_what_a_model_leaves_out():
    for kind, window, sparse in (("mha", None, False), ("dma", 16, True)):
        model = DmabenchForCausalLM(model_config("tiny", kind))
        row = about(Source("untrained:tiny", None, "x"), Loaded(model, None))
        assert (row["attention"], row["window"], row["dtype"]) == (kind, window, "float32")
        assert row["parameters"] == sum(one.numel() for one in model.parameters())
        assert [facts(Loaded(model, None), length)["sparsity_active"] for length in (16, 17)] == [False, sparse]
        assert (facts(Loaded(model, None), 100)["density"] < 1) is sparse


def test_a_configuration_is_known_but_for_models_on_the_hub():
    assert config_of("untrained:tiny:swa").attention == "swa"
    assert config_of("org/name") is None
    with pytest.raises(ValueError, match="no preset 'huge'"):
        config_of("untrained:huge")
