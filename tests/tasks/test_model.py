"""The model: padding, gradients, checkpoints, what it refuses."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from dmabench.tasks import model as model_module
from dmabench.tasks.model import DmabenchForCausalLM

EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["rope", "none"])
def test_padding_changes_no_real_token(small, attention, side, positions):
    model = small.model(attention, short_conv=3, positions=positions)
    rows = [small.tokens(1, length, seed)[0] for length, seed in ((45, 1), (21, 2), (2, 3))]
    ids, mask = small.padded(rows, side)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        for number, row in enumerate(rows):
            alone = model(row[None]).logits[0]
            torch.testing.assert_close(logits[number][mask[number].bool()], alone, **EXACT)


def test_no_token_sees_the_future(small, attention):
    model, ids = small.model(attention, short_conv=3), small.tokens(1, 50)
    changed = ids.clone()
    changed[0, 30] = 1 + ids[0, 30] % 143
    with torch.no_grad():
        before, after = model(ids).logits[0], model(changed).logits[0]
    torch.testing.assert_close(before[:30], after[:30], **EXACT)
    assert (before[30] - after[30]).abs().max() > 0.1


def test_the_past_is_seen_without_positions_too(small):
    """A model without positions is not a bag of words for its last token alone: it changes when the past does."""
    model, ids = small.model("mha", positions="none"), small.tokens(1, 20)
    assert not model.model.rotary_emb
    swapped = ids[:, [1, 0, *range(2, 20)]]
    with torch.no_grad():
        deep = (model(ids).logits - model(swapped).logits)[0, -1].abs().max()
        rotary = small.model("mha")
        moved = (rotary(ids).logits - rotary(swapped).logits)[0, -1].abs().max()
    assert 0 < deep and 0 < moved


def cross_entropy(model, ids):
    """In float64, where the loss of transformers is in float32."""
    return torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def loss_and_gradients(model, ids, **settings):
    model.zero_grad()
    loss = model(ids, labels=ids, **settings).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_every_parameter(small, attention):
    """A, W_dt and v among them."""
    model, ids = small.model(attention, short_conv=3), small.tokens(2, 50)
    _, gradients = loss_and_gradients(model.train(), ids)
    dead = [name for name, _ in model.named_parameters() if name not in gradients or not gradients[name].any()]
    assert dead == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_the_gradient_of_importance_is_the_slope(small):
    """The choice of keys is not differentiated, so the step must be too small to change it."""
    model, ids = small.model("dma"), small.tokens(1, 40)
    cross_entropy(model, ids).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in ("A", "W_dt", "v_proj.weight"):
        name = f"model.layers.0.self_attn.{name}"
        parameter, slope = model.get_parameter(name), 0.0
        index = tuple(0 for _ in parameter.shape)
        with torch.no_grad():
            for step in (1e-6, -1e-6):
                parameter[index] += step
                slope += float(cross_entropy(model, ids)) / (2 * step)
                parameter[index] -= step
        assert slope == pytest.approx(float(gradients[name][index]), rel=1e-4, abs=1e-7), name


def test_gradient_checkpointing_gives_the_same_gradients(small, attention):
    model, ids = small.model(attention, short_conv=3).train(), small.tokens(2, 50)
    loss, gradients = loss_and_gradients(model, ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, checkpointed = loss_and_gradients(model, ids, use_cache=True)
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    torch.testing.assert_close(checkpointed, gradients, rtol=0, atol=1e-12)


def test_half_precision_autocast_trains(small, attention):
    model, ids = small.model(attention, short_conv=3).float().train(), small.tokens(2, 50)
    full, _ = loss_and_gradients(model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = loss_and_gradients(model, ids)
        cached = model.eval().generate(ids[:, :20], max_new_tokens=4, do_sample=False)
    assert cached.shape == (2, 24)
    torch.testing.assert_close(loss, full, rtol=0.2, atol=0.2)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_importance_is_float32_under_autocast(small, monkeypatch):
    from dmabench.tasks.attention import dma

    seen, make_plan = [], dma.make_plan

    def spy(delta, *args, **kwargs):
        seen.append(delta)
        return make_plan(delta, *args, **kwargs)

    monkeypatch.setattr(dma, "make_plan", spy)
    model, ids = small.model("dma").float(), small.tokens(1, 140)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids)
    assert len(seen) == 2
    for delta in seen:
        assert delta.dtype == torch.float32
        assert len(delta[0, 0].unique()) > 100  # in bfloat16 there would be far fewer


def test_labels_and_logits_to_keep(small):
    model, ids = small.model("dma"), small.tokens(2, 30)
    logits = model(ids).logits
    loss = model(ids, labels=ids).loss.detach()
    assert float(loss) == pytest.approx(float(cross_entropy(model, ids).detach()), rel=1e-6)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, logits[:, -3:], **EXACT)
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([4, 9])).logits, logits[:, [4, 9]], **EXACT)


def test_hidden_states(small):
    model = small.model("dma")
    ids, mask = small.padded([small.tokens(1, 20)[0], small.tokens(1, 9)[0]], "left")
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 3
    torch.testing.assert_close(states[0][mask.bool()], model.model.embed_tokens(ids)[mask.bool()])
    torch.testing.assert_close(model.lm_head(states[-1]), model(ids, attention_mask=mask).logits, **EXACT)


def test_save_and_load(small, attention, tmp_path):
    model, ids = small.model(attention, short_conv=3), small.tokens(2, 40)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention"] == attention
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again) is DmabenchForCausalLM
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoConfig.from_pretrained(tmp_path).kinds == model.config.kinds
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["swa", "dma", "nsa"])
def test_another_window_at_test_time(small, kind, tmp_path):
    model, ids = small.model(kind), small.tokens(1, 80)
    model.save_pretrained(tmp_path)
    wider = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, window=48)
    assert wider.config.window == 48
    with torch.no_grad():
        before = model(ids).logits
        model.set_window(48)
        after = model(ids).logits
    torch.testing.assert_close(after, wider(ids).logits, **EXACT)
    assert (after - before)[0, -1].abs().max() > 0.01
    if kind != "nsa":  # where the window decides the sizes of blocks
        torch.testing.assert_close(after[:, :16], before[:, :16], **EXACT)
    with torch.no_grad():
        cache = model.new_cache()
        turns = [model(ids[:, :60], cache=cache).logits, model(ids[:, 60:], cache=cache).logits]
    torch.testing.assert_close(torch.cat(turns, 1), after, **EXACT)
    with pytest.raises(ValueError, match="window"):
        model.set_window(0)
    assert model.config.window == 48


def test_initial_importance_is_small_and_not_zero(small):
    torch.manual_seed(0)
    model = DmabenchForCausalLM(small.config("dma", num_hidden_layers=64))
    gates = torch.cat([layer.self_attn.A for layer in model.model.layers])
    assert gates.ne(0).all() and 0.015 < gates.std() < 0.025
    assert 0.015 < torch.cat([layer.self_attn.W_dt for layer in model.model.layers]).std() < 0.025


def test_a_checkpoint_of_another_kind(small, tmp_path):
    small.model("mha").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained with attention mha, not dma"):
        AutoModelForCausalLM.from_pretrained(tmp_path, attention="dma")
    with pytest.raises(ValueError, match="trained with attention mha, not swa"):
        DmabenchForCausalLM.from_pretrained(tmp_path, attention="swa")
    with pytest.raises(ValueError, match="trained with attention mha, not mla"):
        DmabenchForCausalLM.from_pretrained(tmp_path, config=small.config("mla"))


def test_a_checkpoint_with_weights_that_do_not_fit(small, tmp_path):
    model = small.model("dma")
    weights = {name: weight for name, weight in model.state_dict().items() if not name.endswith("0.self_attn.A")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"do not fit.*missing.*layers\.0\.self_attn\.A"):
        DmabenchForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit.*of another shape"):
        DmabenchForCausalLM.from_pretrained(tmp_path, intermediate_size=64)
    with pytest.raises(ValueError, match="positions 'ropes' is unknown"):
        DmabenchForCausalLM.from_pretrained(tmp_path, positions="ropes")


def test_a_checkpoint_of_another_model(tmp_path):
    config = Qwen3Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, vocab_size=8
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'qwen3'.*--init-from"):
        DmabenchForCausalLM.from_pretrained(tmp_path)


def test_longer_than_positions_reach(small, tmp_path):
    model, ids = small.model("dma", max_position_embeddings=32), small.tokens(1, 40)
    with pytest.raises(ValueError, match="40 tokens, but positions reach to 32"):
        model(ids)
    cache = model.new_cache()
    model(ids[:, :30], cache=cache)
    with pytest.raises(ValueError, match="40 tokens"):
        model(ids[:, 30:], cache=cache)
    model.save_pretrained(tmp_path)
    stretched = AutoModelForCausalLM.from_pretrained(tmp_path, positions="yarn", yarn_factor=2.0)
    assert stretched(ids).logits.isfinite().all()
    without = AutoModelForCausalLM.from_pretrained(tmp_path, positions="none")
    assert without(ids).logits.isfinite().all()


def test_a_window_that_covers_everything_is_said_once(small, monkeypatch):
    said = []
    monkeypatch.setattr(model_module, "note_once", said.append)
    model, ids = small.model("dma", window=16), small.tokens(1, 40)
    model(ids[:, :16])
    model(ids[:, :17])
    assert len(said) == 1 and "window 16 covers all 16 tokens: dma attention is dense here" in said[0]


def test_padding_between_real_tokens_is_refused(small):
    model, ids = small.model("dma"), small.tokens(1, 10)
    mask = torch.ones(1, 10, dtype=torch.long)
    mask[0, 4] = 0
    with pytest.raises(ValueError, match="padding between real tokens"):
        model(ids, attention_mask=mask)


def test_importance_that_is_not_finite_is_refused_by_name(small):
    model, ids = small.model("dma"), small.tokens(1, 30)
    model(ids)
    model.require_finite_importance()
    assert bool(model.model.layers[1].self_attn.finite.all())
    model.model.layers[1].self_attn.finite = torch.tensor(False)  # as a GPU backend leaves it, without raising
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn"):
        model.require_finite_importance()
