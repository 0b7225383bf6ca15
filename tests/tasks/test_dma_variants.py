"""Parts of dma changed one at a time: what each leaves the same, and what a checkpoint of it remembers."""

import pytest
import torch

from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.pairs_kept import watched
from dmabench.tasks.presets import model_config
from dmabench.tasks.recipe import Recipe, make_optimizer
from dmabench.tasks.task_model import density, sparsity_active

WINDOW, LENGTH = 8, 40
VARIANTS = {
    "k": {"dma_importance": "k"},
    "random": {"dma_importance": "random"},
    "constant": {"dma_importance": "constant"},
    "recency": {"dma_importance": "recency"},
    "shared": {"dma_shared": True},
    "no bias": {"dma_bias": False},
    "no mask": {"dma_mask": False},
    "linear": {"dma_parametrisation": "linear"},
}


def make(attention="dma", seed=0, **fields):
    torch.manual_seed(seed)
    # Larger weights than in training, so that the masks of two heads differ in a model that was never trained.
    config = model_config("tiny", attention, window=WINDOW, initializer_range=0.3, vocab_size=64, **fields)
    return DmabenchForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def ids():
    """No token twice: keys of equal tokens tie in the first layer, up to rounding, which decoding rounds otherwise."""
    draw = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(64, generator=draw)[:LENGTH] for _ in range(2)])


def with_weights_of(model, other):
    """The model with all weights that the other has."""
    missing, unexpected = model.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected and all(name.endswith(("W_dt", ".A")) for name in missing)
    return model


def gradients(model, ids):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_constant_importance_is_the_sliding_window(ids):
    window = make("swa")
    constant = with_weights_of(make(dma_importance="constant"), window)
    assert {name for name, _ in constant.named_parameters()} == {name for name, _ in window.named_parameters()}
    (loss, mine), (expected, theirs) = gradients(constant, ids), gradients(window, ids)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine, theirs)
    assert density(constant.config, LENGTH) == density(window.config, LENGTH)
    told = [model.generate(ids, max_new_tokens=12, do_sample=False) for model in (constant, window)]
    assert torch.equal(*told)


def test_recency_without_its_bias_is_the_sliding_window_too(ids):
    window = make("swa")
    recent = with_weights_of(make(dma_importance="recency", dma_bias=False), window)
    torch.testing.assert_close(recent(input_ids=ids).logits, window(input_ids=ids).logits)


def test_no_mask_and_no_importance_is_dense(ids):
    dense = make("mha")
    open_ = with_weights_of(make(dma_importance="constant", dma_mask=False), dense)
    torch.testing.assert_close(open_(input_ids=ids).logits, dense(input_ids=ids).logits)
    assert density(open_.config, LENGTH) == 1 and not sparsity_active(open_.config, LENGTH)
    biased = with_weights_of(make(dma_mask=False, dma_bias=False), dense)
    torch.testing.assert_close(biased(input_ids=ids).logits, dense(input_ids=ids).logits)


def test_heads_that_share_a_mask_keep_the_same_keys_and_others_do_not(ids):
    for _, evict in watched(make(dma_shared=True), ids):
        assert torch.equal(evict[:, 0], evict[:, 1])
    assert any(not torch.equal(evict[:, 0], evict[:, 1]) for _, evict in watched(make(), ids))


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_gives_what_the_whole_sequence_gives(ids, name):
    model = make(**VARIANTS[name])
    whole = model(input_ids=ids).logits
    cache = model.new_cache()
    parts = [model(input_ids=part, cache=cache).logits for part in ids.split([20, 1, 1, 10, 8], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@torch.no_grad()
@pytest.mark.parametrize("name", ["recency", "no bias", "no mask", "k"])
def test_padding_on_the_left_changes_nothing(ids, name):
    model = make(**VARIANTS[name])
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :5] = 0
    whole = model(input_ids=ids[:1, 5:]).logits
    cache = model.new_cache()
    first = model(input_ids=ids[:, :30], attention_mask=mask[:, :30], cache=cache).logits
    rest = model(input_ids=ids[:, 30:], attention_mask=mask, cache=cache).logits
    torch.testing.assert_close(torch.cat([first[:1, 5:], rest[:1]], 1), whole)


@pytest.mark.parametrize("name", ["random", "no bias"])
def test_importance_that_nothing_trains_is_left_as_it_was(ids, name):
    model = make(**VARIANTS[name])
    frozen = {name: p.clone() for name, p in model.named_parameters() if name.endswith(("W_dt", ".A"))}
    assert len(frozen) == 4
    optimizer = make_optimizer(model, Recipe(steps=1, batch=2, lr=0.1))
    _, moved = gradients(model, ids)
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before) for name, before in frozen.items())
    assert not set(frozen) & set(moved) and len(moved) == len(after) - 4


@pytest.mark.parametrize("name", ["k", "shared", "linear"])
def test_importance_that_is_learned_gets_gradients(ids, name):
    model = make(**VARIANTS[name])
    _, moved = gradients(model, ids)
    assert all(moved[name].abs().sum() > 0 for name, _ in model.named_parameters() if name.endswith(("W_dt", ".A")))


def test_a_checkpoint_remembers_its_variant(tmp_path, ids):
    model = make(dma_importance="k", dma_shared=True, dma_mask=False)
    model.save_pretrained(tmp_path)
    again = DmabenchForCausalLM.from_pretrained(tmp_path).double().eval()
    assert (again.config.dma_importance, again.config.dma_shared, again.config.dma_mask) == ("k", True, False)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_an_unknown_importance_is_refused():
    with pytest.raises(ValueError, match="dma_importance 'keys' is unknown, known are v, k, random"):
        model_config("tiny", dma_importance="keys")


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_fused_backends_train_every_variant(name):
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 2, "vocab_size": 2048, "window": 128, "initializer_range": 0.1, **VARIANTS[name]}
    model = DmabenchForCausalLM(model_config("30M", "dma", **fields)).cuda()
    ids = torch.stack([torch.randperm(2048, generator=torch.Generator().manual_seed(1))[:512]]).cuda()
    found = {}
    for backend in ("auto", "reference"):
        model.config.dma_backend = backend
        model.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found[backend] = gradients(model, ids)
    (loss, mine), (expected, theirs) = found["auto"], found["reference"]
    assert float(loss) == pytest.approx(float(expected), rel=0.02) and set(mine) == set(theirs)
    for part, gradient in mine.items():
        if not part.endswith(("W_dt", ".A")):  # small sums of large numbers: bf16 rounds them away
            assert (gradient - theirs[part]).norm() < 0.1 * theirs[part].norm() + 1e-6, part
