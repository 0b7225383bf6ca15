"""A Qwen3 checkpoint becomes a model of dmabench, or a sentence says why not."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from dmabench.tasks import convert
from dmabench.tasks.convert import init_from


def qwen3(**settings):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "vocab_size": 61,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    }
    return Qwen3ForCausalLM(Qwen3Config(**{**sizes, **settings})).eval()


@pytest.fixture
def folder(tmp_path):
    qwen3(tie_word_embeddings=True).save_pretrained(tmp_path)
    return tmp_path


IDS = torch.arange(40)[None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_weights_same_function(tmp_path, tied, dtype):
    source = qwen3(tie_word_embeddings=tied).to(dtype)
    source.save_pretrained(tmp_path)
    model = init_from(tmp_path, "mha")
    assert model.dtype == dtype and model.config.tie_word_embeddings == tied
    assert model.config.rope_parameters["rope_theta"] == 5e4
    with torch.no_grad():
        torch.testing.assert_close(
            model(IDS).logits, source(IDS).logits, rtol=0.02, atol=0.02 if dtype != torch.float32 else 1e-5
        )
    assert model.lm_head.weight.eq(source.lm_head.weight).all()


def test_dma_starts_nearly_as_the_original(folder):
    source, model = Qwen3ForCausalLM.from_pretrained(folder), init_from(folder, "dma", window=64)
    assert model.config.kinds == ["dma", "dma"] and model.config.window == 64
    for layer in model.model.layers:
        assert layer.self_attn.A.ne(0).all() and layer.self_attn.A.abs().max() < 0.1
    with torch.no_grad():
        expected, got = source(IDS).logits, model(IDS).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=0.01 * float(expected.std()))
        model.set_window(4)
        assert (model(IDS).logits - expected).abs().max() > 0.01 * expected.std()


def test_only_what_qwen3_lacks_is_new(folder):
    weights, model = Qwen3ForCausalLM.from_pretrained(folder).state_dict(), init_from(folder, "dma:1,nsa:1", window=16)
    new = {name.rsplit("self_attn.")[-1] for name in model.state_dict() if name not in weights}
    assert new == {"W_dt", "A", "g_proj.weight"}
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in weights.items())


def test_a_converted_model_is_saved_and_trained(folder, tmp_path):
    model = init_from(folder, "dma", window=8)
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].self_attn.A.grad.ne(0).all()
    model.save_pretrained(tmp_path / "converted")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": "mla"}, "mla has other projections than Qwen3"),
        ({"attention": "dna"}, "attention 'dna' is unknown"),
        (
            {"head_dim": 16},
            r"do not fit the settings asked for: model.layers.0.self_attn.q_proj.weight: (32, 32) there",
        ),
        ({"num_key_value_heads": 4}, "k_proj.weight: (16, 32) there, (32, 32) here"),
        ({"num_hidden_layers": 1}, "model.layers.1"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"window": 0}, "window must be"),
    ],
)
def test_settings_that_do_not_fit(folder, settings, said):
    with pytest.raises(ValueError) as refusal:
        init_from(folder, **settings)
    assert said in str(refusal.value)


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere has no config\.json"):
        init_from(tmp_path / "nowhere")
    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8)).save_pretrained(other)
    with pytest.raises(ValueError, match="type 'gpt2'; --init-from converts qwen3 alone"):
        init_from(other)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_size": 64}))
    with pytest.raises(ValueError, match=r"do not fit its own config\.json"):
        init_from(folder)
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "layer_types": None}
    (folder / "config.json").write_text(json.dumps({**settings, **windows}))
    with pytest.raises(ValueError, match="sliding-window layers of its own"):
        init_from(folder)
    yarn = {"rope_type": "yarn", "rope_theta": 5e4, "factor": 2.0, "original_max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({**settings, "rope_parameters": yarn}))
    with pytest.raises(ValueError, match="yarn positions"):
        init_from(folder)


def test_command_line(folder, tmp_path, capsys):
    (folder / "tokenizer.json").write_text("{}")
    output = tmp_path / "converted"
    convert.main(["--init-from", str(folder), "--attention", "dma:1,mha:1", "--window", "9", "--output", str(output)])
    assert "dma:1,mha:1, window 9" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(output).config.kinds == ["dma", "mha"]
    assert (output / "tokenizer.json").read_text() == "{}"
    with pytest.raises(SystemExit) as stop:
        convert.main(["--init-from", str(tmp_path / "nowhere"), "--output", str(output)])
    assert stop.value.code == 2 and "has no config.json" in capsys.readouterr().err
