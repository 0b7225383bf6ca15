"""Cached is uncached: token by token, in turns, padded, in beams, for every attention and for all in one model."""

import pytest
import torch

from dmabench.kernels import Unsupported
from dmabench.kernels.live_keys import LiveKeys
from dmabench.tasks.model import CACHE

EXACT = {"rtol": 0, "atol": 1e-9}
DISTINCT = {"do_sample": False, "no_repeat_ngram_size": 1, "suppress_tokens": [0]}
"""No token twice and no padding token: see `tokens` in conftest.py."""


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def in_turns(model, ids, lengths, cache, mask=None):
    """Logits of `ids`, that many tokens at a time, through one cache."""
    logits, start = [], 0
    for length in lengths:
        end = start + length
        given = None if mask is None else mask[:, :end]
        logits.append(model(ids[:, start:end], attention_mask=given, cache=cache).logits)
        start = end
    assert start == ids.shape[1]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("short_conv", [0, 3])
@pytest.mark.parametrize("kind_of_cache", ["bounded", "full"])
def test_token_by_token(small, attention, short_conv, kind_of_cache):
    model, ids = small.model(attention, short_conv=short_conv), small.tokens(2, 60)
    whole = model(ids).logits
    assert whole.std() > 1
    one_by_one = in_turns(model, ids, [5] + [1] * 55, model.new_cache(kind_of_cache))
    torch.testing.assert_close(one_by_one, whole, **EXACT)


def test_three_turns_of_a_chat_are_one_pass(small, attention):
    """Turns shorter than the window, longer than it, and of one token, on one live cache."""
    model, ids = small.model(attention, short_conv=4), small.tokens(2, 70)
    turns = in_turns(model, ids, [23, 9, 1, 1, 30, 6], model.new_cache())
    torch.testing.assert_close(turns, model(ids).logits, **EXACT)


@pytest.mark.parametrize("short_conv", [0, 3])
def test_left_padding_token_by_token(small, attention, short_conv):
    """Rows of a padded batch, past the window, are what each row is alone and in one pass."""
    model = small.model(attention, short_conv=short_conv)
    rows = [small.tokens(1, length, seed)[0] for length, seed in ((50, 1), (31, 2), (33, 3))]
    ids, mask = small.padded(rows, "left")
    lengths = [22, *[1] * 20, 8]  # the second row has three real tokens in the first call
    cache = model.new_cache()
    logits = in_turns(model, ids, lengths, cache, mask)
    for number, row in enumerate(rows):
        alone = model(row[None]).logits[0]
        torch.testing.assert_close(logits[number, -len(row) :], alone, **EXACT)


def test_a_row_without_real_tokens_yet(small, attention):
    model = small.model(attention, short_conv=3)
    rows = [small.tokens(1, length, seed)[0] for length, seed in ((40, 1), (12, 2))]
    ids, mask = small.padded(rows, "left")
    logits = in_turns(model, ids, [28, 1, 11], model.new_cache(), mask)
    for number, row in enumerate(rows):
        torch.testing.assert_close(logits[number, -len(row) :], model(row[None]).logits[0], **EXACT)


def test_generate_is_the_best_token_again_and_again(small, attention):
    model = small.model(attention)
    rows = [small.tokens(1, length, seed)[0] for length, seed in ((20, 1), (11, 2))]
    ids, mask = small.padded(rows, "left")
    made = model.generate(ids, attention_mask=mask, max_new_tokens=25, **DISTINCT)[:, 20:]
    for number, row in enumerate(rows):
        for step in range(25):
            logits = model(row[None]).logits[0, -1]
            logits[[0, *row.tolist()]] = -torch.inf
            best = logits.argmax()
            assert made[number, step] == best, (number, step)
            row = torch.cat([row, best[None]])


def test_beam_search_reorders_every_cache(small, attention):
    model, ids = small.model(attention, short_conv=3), small.tokens(2, 20)
    settings = {"max_new_tokens": 20, "num_beams": 3, **DISTINCT}
    cached = model.generate(ids, **settings)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))
    assert not torch.equal(cached, model.generate(ids, **{**settings, "num_beams": 1}))


def test_beam_search_with_left_padding(small, attention):
    model = small.model(attention)
    rows = [small.tokens(1, length, seed)[0] for length, seed in ((20, 1), (11, 2))]
    ids, mask = small.padded(rows, "left")
    settings = {"max_new_tokens": 15, "num_beams": 3, **DISTINCT}
    made = model.generate(ids, attention_mask=mask, **settings)[:, 20:]
    for number, row in enumerate(rows):
        assert torch.equal(made[number], model.generate(row[None], **settings)[0, len(row) :])


def test_a_row_reordered_goes_on_as_itself(small, attention):
    model, ids = small.model(attention, short_conv=3), small.tokens(3, 40)
    cache = model.new_cache()
    model(ids[:, :30], cache=cache)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    went_on = model(ids[:, 30:], cache=cache).logits
    for row, source in enumerate((2, 2, 0)):
        whole = model(torch.cat([ids[source, :30], ids[row, 30:]])[None]).logits[0, 30:]
        torch.testing.assert_close(went_on[row], whole, **EXACT)


def test_batches_grow_and_shrink(small, attention):
    model, ids = small.model(attention, short_conv=3), small.tokens(2, 40)
    cache = model.new_cache()
    model(ids[:, :30], cache=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1, 3]))
    went_on = model(ids[:, 30:], cache=cache).logits
    torch.testing.assert_close(went_on, model(ids).logits[:, 30:], **EXACT)


@pytest.mark.parametrize("kind", ["swa", "dma"])
def test_a_bounded_cache_holds_a_window(small, kind):
    model, ids = small.model(kind), small.tokens(2, 120)
    cache = model.new_cache()
    model(ids[:, :40], cache=cache)
    size = cache.nbytes
    for position in range(40, 120):
        model(ids[:, position : position + 1], cache=cache)
    assert cache.nbytes == size
    for layer in cache.layers:
        held = layer.state.k_BGWD if isinstance(layer.state, LiveKeys) else layer.state.held[0]
        assert held.shape[2] == small.window
    full = model.new_cache("full")
    model(ids, cache=full)
    assert full.nbytes > 5 * size


def test_assisted_decoding_with_a_full_cache(small, attention):
    """Guesses are looked up in the text, so tokens repeat, so the window takes all of them (see conftest.py)."""
    model = small.model(attention, short_conv=3, window=64)
    ids = small.tokens(1, 6).repeat(1, 5)
    greedy = model.generate(ids, max_new_tokens=25, do_sample=False)
    settings = {"max_new_tokens": 25, "do_sample": False, "prompt_lookup_num_tokens": 4}
    assert torch.equal(model.generate(ids, **{CACHE: model.new_cache("full")}, **settings), greedy)
    model.config.decode_cache = "full"
    assert torch.equal(model.generate(ids, **settings), greedy)


@pytest.mark.parametrize("kind", ["swa", "dma"])
def test_assisted_decoding_with_a_bounded_cache_is_refused(small, kind):
    model, ids = small.model(kind), small.tokens(1, 30)
    with pytest.raises(Unsupported, match='decode_cache="full"'):
        model.generate(ids, max_new_tokens=5, prompt_lookup_num_tokens=4)
    cache = model.new_cache()
    model(ids, cache=cache)
    with pytest.raises(Unsupported, match="full"):
        cache.crop(-3)


def test_cropping_a_full_cache(small, attention):
    model, ids = small.model(attention, short_conv=3), small.tokens(2, 60)
    cache = model.new_cache("full")
    model(ids[:, :45], cache=cache)
    cache.crop(-15)
    assert cache.get_seq_length() == 30
    torch.testing.assert_close(model(ids[:, 30:], cache=cache).logits, model(ids).logits[:, 30:], **EXACT)


def test_a_cache_that_was_reset_starts_anew(small, attention):
    model, ids = small.model(attention, short_conv=3), small.tokens(2, 60)
    cache = model.new_cache()
    model(ids.flip(0), cache=cache)
    cache.reset()
    torch.testing.assert_close(in_turns(model, ids, [25, 35], cache), model(ids).logits, **EXACT)


def test_old_and_new_name_of_the_cache(small):
    model, ids = small.model("dma"), small.tokens(1, 30)
    out = model(ids[:, :20], use_cache=True)
    further = model(ids[:, 20:], past_key_values=out.past_key_values)
    torch.testing.assert_close(further.logits, model(ids).logits[:, 20:], **EXACT)


def test_what_a_cache_refuses(small):
    from transformers import DynamicCache

    model, ids = small.model("dma"), small.tokens(2, 30)
    with pytest.raises(ValueError, match="new_cache"):
        model(ids, cache=DynamicCache())
    with pytest.raises(ValueError, match="decode_cache"):
        model.generate(ids, max_new_tokens=3, cache_implementation="static")
    cache = model.new_cache()
    right = torch.ones(2, 20, dtype=torch.long)
    right[1, 15:] = 0
    model(ids[:, :20], attention_mask=right, cache=cache)
    with pytest.raises(ValueError, match="after padding"):
        model(ids[:, 20:], cache=cache)
    cache = model.new_cache()
    model(ids[:, :20], cache=cache)
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 30\)"):
        model(ids[:, 20:], attention_mask=torch.ones(2, 10), cache=cache)
