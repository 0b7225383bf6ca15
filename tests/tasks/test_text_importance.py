"""Importance on a text: that of the layers themselves, and what is refused."""

import pytest
import torch

from dmabench.kernels import importance
from dmabench.tasks.downstream import checkpoints
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config
from dmabench.tasks.text_importance import labels, read, shape_of

TINY = "untrained:tiny"


@pytest.fixture
def saved(tmp_path):
    """A model with dma in its second layer alone, saved as a checkpoint."""
    torch.manual_seed(1)
    folder = tmp_path / "mine,2"
    DmabenchForCausalLM(model_config("tiny", "mha,dma", max_position_embeddings=100)).save_pretrained(folder)
    checkpoints.tokenizer_of(checkpoints.find(TINY)).save_pretrained(folder)
    (tmp_path / "book.txt").write_text("Call me Ishmael. " * 20)
    return str(folder), str(tmp_path / "book.txt")


def test_it_is_what_the_layers_compute_of_their_values():
    found = read(TINY, "synthetic", 40, "cpu")
    assert list(found.deltas) == [(16, 0), (16, 1)] and found.problems is None
    model = checkpoints.load(checkpoints.find(TINY), "cpu").model
    layer = model.model.layers[0].self_attn
    values = []
    layer.v_proj.register_forward_hook(lambda module, given, out: values.append(out))
    words = checkpoints.tokenizer_of(checkpoints.find(TINY))
    from dmabench.tasks.synthetic_text import documents

    ids = [words.eos_token_id, *words(next(iter(documents())))["input_ids"]][:40]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        model(input_ids=torch.tensor([ids]))
        expected = importance(values[0].unflatten(-1, (2, -1)).transpose(1, 2), layer.W_dt, layer.A)[0]
    assert found.deltas[16, 0].shape == (2, 40) and found.deltas[16, 0].dtype == torch.float32
    torch.testing.assert_close(found.deltas[16, 0], expected, rtol=0.02, atol=0.02)  # read under autocast to bf16


def test_a_later_layer_depends_on_the_window_and_the_first_does_not():
    found = read(TINY, "synthetic", 64, "cpu", windows=[4, 64]).deltas
    assert torch.equal(found[4, 0], found[64, 0]) and not torch.equal(found[4, 1], found[64, 1])


def test_a_checkpoint_and_a_file(saved):
    folder, text = saved
    assert shape_of(folder).layers == (1,) and shape_of(folder).reach == 100
    found = read(folder, text, 100, "cpu")
    assert found.deltas[16, 1].shape == (2, 100)
    assert found.text.startswith("book.txt@") and found.model.startswith("mine,2@")
    assert labels(folder, text) == (found.model, found.text)


def test_a_short_text_is_refused_or_taken_as_it_is(saved, tmp_path):
    folder, _ = saved
    (tmp_path / "note.txt").write_text("short")
    with pytest.raises(ValueError, match=r"the text note.txt has 7 tokens for .*, fewer than 8: name a longer text"):
        read(folder, str(tmp_path / "note.txt"), 8, "cpu")
    assert read(folder, str(tmp_path / "note.txt"), 8, "cpu", shorter=True).deltas[16, 1].shape == (2, 7)


def test_refusals(saved):
    folder, text = saved
    with pytest.raises(ValueError, match=r"no layer with dynamic mask attention \(its attention is mha\)"):
        shape_of("untrained:tiny:mha")
    with pytest.raises(ValueError, match=r"layer 0 of .* has no dma; layers with it, counted from 0: 1"):
        read(folder, text, 10, "cpu", layers=[0])
    with pytest.raises(ValueError, match="positions for 100 tokens: a length of 101 is too long"):
        read(folder, text, 101, "cpu")
    with pytest.raises(ValueError, match="--text nothing: there is no such file or folder"):
        read(folder, "nothing", 10, "cpu")


def test_importance_that_is_not_finite_is_refused(saved):
    folder, text = saved
    model = DmabenchForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].self_attn.A.fill_(torch.inf)
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        read(folder, text, 10, "cpu")
