"""The decoding cache against the definition: the same live keys after every token, the same output for every query.

The Triton kernels of a decoding step are test_live_keys_step.py's business.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmabench.kernels import LiveKeys, Unsupported, decode_step, dynamic_mask_attention, make_plan

F64 = torch.float64
TIED = [0.0, -0.0, 1.0, 2.0, -1.5, -math.inf]


def held_positions(cache: LiveKeys) -> list[list[set[int]]]:
    """The positions of the live keys, by batch and head."""
    found = []
    for b, counts in enumerate(cache.count_BG.tolist()):
        found.append([set(cache.position_BGW[b, g, :count].tolist()) for g, count in enumerate(counts)])
        assert [len(x) for x in found[b]] == counts, "one key in two slots"
    return found


def marked_keys(delta: Tensor) -> tuple[Tensor, Tensor]:
    """k and v [B, G, T, 4] that tell batch, head and position: (b, g, j, delta) and its negative."""
    B, G, T = delta.shape
    b, g, j = torch.meshgrid(torch.arange(B), torch.arange(G), torch.arange(T), indexing="ij")
    k = torch.stack([b, g, j, delta], -1).double()
    return k, -k


def assert_slots_are_whole(cache: LiveKeys) -> None:
    for b, counts in enumerate(cache.count_BG.tolist()):
        for g, count in enumerate(counts):
            delta, position = cache.delta_BGW[b, g, :count], cache.position_BGW[b, g, :count]
            rows = torch.stack([torch.full_like(delta, b), torch.full_like(delta, g), position.float(), delta], -1)
            assert torch.equal(cache.k_BGWD[b, g, :count].float(), rows.float())
            assert torch.equal(cache.v_BGWD[b, g, :count].float(), -rows.float())


@st.composite
def streams(draw, values):
    """delta [B, G, T], a key mask or None, a window, and T cut into turns."""
    B, G, T = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 20))
    delta = torch.tensor(draw(st.lists(st.sampled_from(values), min_size=B * G * T, max_size=B * G * T)))
    mask = draw(st.none() | st.lists(st.booleans(), min_size=B * T, max_size=B * T))
    turns = []
    while sum(turns) < T:
        turns.append(draw(st.integers(1, T - sum(turns))))
    key_mask = None if mask is None else torch.tensor(mask).view(B, T)
    return delta.view(B, G, T), key_mask, draw(st.integers(1, 7)), turns


@settings(max_examples=150, deadline=None)
@given(streams([*TIED, math.nan]), st.sampled_from(["append", "prefill", "plan"]))
def test_the_live_set_is_the_definitions_after_every_turn(definition, stream, start):
    delta, key_mask, window, turns = stream
    live = definition.live_keys(delta, window, key_mask)
    evict = make_plan(delta, window, key_mask=key_mask).evict_BGT
    k, v = marked_keys(delta)
    cache, at = LiveKeys(window), 0
    for n in turns:
        turn = slice(at, at + n)
        mask = None if key_mask is None else key_mask[:, turn]
        tokens = (k[:, :, turn], v[:, :, turn], delta[:, :, turn])
        if at == 0 and start != "append":
            cache.prefill(*tokens, mask, make_plan(tokens[2], window, key_mask=mask) if start == "plan" else None)
        else:
            cache.append(*tokens, mask)
        at += n
        right = [[set(row.nonzero().flatten().tolist()) for row in heads] for heads in live[:, :, at - 1]]
        assert held_positions(cache) == right
        j = torch.arange(delta.shape[-1])
        by_plan = (j < at) & (evict >= at)
        assert [[set(row.nonzero().flatten().tolist()) for row in heads] for heads in by_plan] == right
        assert_slots_are_whole(cache)
        assert len(cache) == cache.seen == at and cache.seen_BG.tolist() == [[at] * delta.shape[1]] * delta.shape[0]


@settings(max_examples=40, deadline=None)
@given(streams(TIED[:-1]), st.integers(0, 99), st.sampled_from(["auto", "sdpa-masked"]))
def test_extending_by_turns_equals_one_pass(definition, stream, seed, backend):
    delta, key_mask, window, turns = stream
    generator = torch.Generator().manual_seed(seed)
    if backend == "sdpa-masked":  # the reference refuses NaN by name
        delta = delta.masked_fill(torch.rand(delta.shape, generator=generator) < 0.2, math.nan)
    B, G, T = delta.shape
    q = torch.randn(B, 2 * G, T, 4, generator=generator, dtype=F64)
    k, v = torch.randn(2, B, G, T, 4, generator=generator, dtype=F64)
    live = definition.live_keys(delta, window, key_mask)
    right, _ = definition.attention(q, k, v, delta, live)
    cache, found = LiveKeys(window), []
    for turn in torch.arange(T).split(turns):
        mask = None if key_mask is None else key_mask[:, turn]
        new = (q[:, :, turn], k[:, :, turn], v[:, :, turn], delta[:, :, turn])
        found.append(cache.extend(*new, mask, backend=backend))
    assert torch.allclose(torch.cat(found, 2), right, rtol=1e-12, atol=1e-12)
    assert held_positions(cache) == [
        [set(row.nonzero().flatten().tolist()) for row in heads] for heads in live[:, :, -1]
    ]


@pytest.mark.parametrize(
    ("T", "turns", "scale"),
    [(150, [60, 1, 1, 29, 1, 58], None), (70, [1] * 70, None), (120, [3, 100, 17], 0.7), (50, [49, 1], 0.7)],
)
def test_each_query_gets_its_row_of_the_operator(inputs, T, turns, scale):
    q, k, v, delta = inputs(B=2, H=6, G=2, T=T, D=8, dtype=F64, seed=T)
    key_mask = torch.ones(2, T, dtype=torch.bool)
    key_mask[1, :37] = False  # left padding
    right = dynamic_mask_attention(q, k, v, delta, 32, key_mask=key_mask, scale=scale)
    cache, at = LiveKeys(32), 0
    for turn in torch.arange(T).split(turns):
        new = [x[:, :, turn] for x in (q, k, v, delta)]
        out = cache.extend(*new, key_mask[:, turn], scale)
        at += len(turn)
        assert torch.allclose(out, right[:, :, at - len(turn) : at], rtol=1e-12, atol=1e-12)
        assert torch.allclose(cache.attend(q[:, :, at - 1 : at], scale), right[:, :, at - 1 : at], atol=1e-12)
    assert bool((right[1, :, :37] == 0).all()) and cache.count_BG.tolist() == [[32, 32], [min(T - 37, 32)] * 2]


def test_a_prompt_then_tokens_in_low_precision(inputs, close):
    q, k, v, delta = inputs(B=1, H=4, G=2, T=80, D=16, dtype=torch.bfloat16)
    right = dynamic_mask_attention(q, k, v, delta, 24)
    cache = LiveKeys(24)
    cache.prefill(k[:, :, :70], v[:, :, :70], delta[:, :, :70], plan=make_plan(delta[:, :, :70], 24, query_len=3))
    for t in range(70, 80):
        out = decode_step(cache, *(x[:, :, t : t + 1] for x in (q, k, v, delta)))
        assert out.dtype == torch.bfloat16
        close(out, right[:, :, t : t + 1])


def test_constant_importance_is_a_sliding_window(inputs):
    _, k, v, _ = inputs(B=1, H=1, G=1, T=20, D=4, dtype=F64)
    cache = LiveKeys(6)
    for t in range(20):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1], torch.zeros(1, 1, 1))
        assert held_positions(cache) == [[set(range(max(0, t - 5), t + 1))]]


def test_a_future_token_does_not_matter(inputs):
    q, k, v, delta = inputs(B=1, H=2, G=1, T=40, D=8, dtype=F64)
    changed = [x.clone() for x in (q, k, v, delta)]
    for x in changed:
        x[:, :, 30:] = 50.0
    outputs = []
    for tokens in ((q, k, v, delta), changed):
        cache = LiveKeys(8)
        cache.prefill(*(x[:, :, :15] for x in tokens[1:]))
        outputs.append(cache.extend(*(x[:, :, 15:] for x in tokens)))
    assert torch.equal(outputs[0][:, :, :15], outputs[1][:, :, :15])
    assert not torch.equal(outputs[0][:, :, 15:], outputs[1][:, :, 15:])


def test_memory_is_allocated_once_and_never_grows(inputs):
    q, k, v, delta = inputs(B=2, H=2, G=1, T=64, D=8)
    cache = LiveKeys(5)
    assert cache.nbytes == 0 and len(cache) == 0 and cache
    buffers = ("k_BGWD", "v_BGWD", "delta_BGW", "position_BGW", "count_BG", "seen_BG")
    addresses, at = None, 0
    for n in (20, 1, 7, 1, 1, 34):
        cache.extend(*(x[:, :, at : at + n] for x in (q, k, v, delta)))
        at += n
        assert cache.k_BGWD.shape == cache.v_BGWD.shape == (2, 1, 5, 8)
        assert cache.nbytes == 2 * (2 * 5 * 8 * 4 + 5 * 4 + 5 * 4 + 4 + 4)
        now = [getattr(cache, name).data_ptr() for name in buffers]
        assert addresses in (None, now)
        addresses = now
    cache.prefill(k, v, delta)
    assert addresses == [getattr(cache, name).data_ptr() for name in buffers]
    cache.reset()
    assert len(cache) == 0 and cache.count_BG.tolist() == [[0], [0]]


def test_beams_are_rows_that_change_places(inputs):
    q, k, v, delta = inputs(B=3, H=4, G=2, T=30, D=8, dtype=F64)
    beams = torch.tensor([2, 0, 2])
    cache = LiveKeys(7)
    cache.prefill(*(x[:, :, :20] for x in (k, v, delta)))
    address = cache.k_BGWD.data_ptr()
    cache.reorder(beams)
    assert cache.k_BGWD.data_ptr() == address
    mixed = [torch.cat([x[beams, :, :20], x[:, :, 20:]], 2) for x in (q, k, v, delta)]
    right = dynamic_mask_attention(*mixed, 7)
    assert torch.allclose(cache.extend(*(x[:, :, 20:29] for x in mixed)), right[:, :, 20:29], atol=1e-12)
    assert torch.allclose(decode_step(cache, *(x[:, :, 29:] for x in mixed)), right[:, :, 29:], atol=1e-12)


@pytest.mark.parametrize("how", ["select", "repeat"])
def test_rows_of_the_batch_can_be_chosen_and_repeated(inputs, how):
    q, k, v, delta = inputs(B=2, H=2, G=1, T=12, D=4, dtype=F64)
    cache = LiveKeys(5)
    cache.batch_repeat_interleave(2)  # nothing there yet: nothing to do
    cache.prefill(*(x[:, :, :11] for x in (k, v, delta)))
    rows = torch.tensor([1] if how == "select" else [0, 0, 0, 1, 1, 1])
    if how == "select":
        cache.batch_select_indices(rows)
    else:
        cache.batch_repeat_interleave(3)
    right = dynamic_mask_attention(q, k, v, delta, 5)[rows][:, :, 11:]
    assert torch.allclose(cache.extend(*(x[rows][:, :, 11:] for x in (q, k, v, delta))), right, atol=1e-12)


def test_rows_of_padding_may_hold_anything(inputs):
    q, k, v, delta = inputs(B=1, H=2, G=1, T=10, D=4, dtype=F64)
    key_mask = torch.tensor([[False] * 4 + [True] * 6])
    right = dynamic_mask_attention(q, k, v, delta, 8, key_mask=key_mask)[:, :, -1:]
    for x in (k, v, delta):
        x[:, :, :4] = math.nan
    together, apart = LiveKeys(8), LiveKeys(8)
    together.prefill(k, v, delta, key_mask)
    for t in range(10):
        apart.append(k[:, :, t : t + 1], v[:, :, t : t + 1], delta[:, :, t : t + 1], key_mask[:, t : t + 1])
    for cache in (together, apart):
        assert torch.allclose(cache.attend(q[:, :, -1:]), right, atol=1e-12)
    assert not bool(together.k_BGWD.isnan().any()) and not bool(apart.v_BGWD.isnan().any())


def test_a_query_without_a_live_key_gets_zeros(inputs):
    q, k, v, delta = inputs(B=1, H=2, G=1, T=3, D=4)
    cache = LiveKeys(8)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    new = [x[:, :, :2] for x in (q, k, v, delta)]
    assert bool((cache.extend(*new, nothing) == 0).all())
    new = [x[:, :, 2:] for x in (q, k, v, delta)]
    assert bool((cache.extend(*new, nothing[:, :1]) == 0).all()) and cache.count_BG.tolist() == [[0]]


def test_nothing_waits_for_the_device():
    """A meta tensor has no data to read, and so refuses what would synchronise."""
    cache = LiveKeys(4)
    q, k, delta = torch.empty(1, 2, 9, 8), torch.empty(1, 1, 9, 8), torch.empty(1, 1, 9)
    q, k, delta = (x.to("meta") for x in (q, k, delta))
    key_mask = torch.empty(1, 9, dtype=torch.bool, device="meta")
    cache.prefill(k, k, delta, key_mask)
    cache.append(k, k, delta, key_mask)
    cache.append(k[:, :, :1], k[:, :, :1], delta[..., :1], key_mask[:, :1])
    assert cache.attend(q[:, :, :1]).shape == (1, 2, 1, 8)
    cache.reorder(torch.empty(1, dtype=torch.int64, device="meta"))


def test_a_decoding_step_is_one_graph_for_torch_compile(inputs):
    q, k, v, delta = inputs(B=1, H=2, G=1, T=12, D=8)
    plain, traced = LiveKeys(4), LiveKeys(4)
    step = torch.compile(decode_step, backend="eager", fullgraph=True)
    for cache in (plain, traced):
        cache.prefill(*(x[:, :, :6] for x in (k, v, delta)))
    with torch.no_grad():
        for t in range(6, 12):
            new = [x[:, :, t : t + 1] for x in (q, k, v, delta)]
            assert torch.equal(step(traced, *new), decode_step(plain, *new))
    assert traced.seen == 12 and torch.equal(traced.position_BGW, plain.position_BGW)


def test_a_failed_turn_leaves_the_cache_as_it_was(inputs):
    q, k, v, delta = inputs(B=1, H=2, G=1, T=12, D=8)
    cache = LiveKeys(4)
    cache.prefill(*(x[:, :, :6] for x in (k, v, delta)))
    before = cache.position_BGW.clone()
    new = [x[:, :, 6:9] for x in (q, k, v, delta.masked_fill(torch.arange(12) == 7, math.nan))]
    with pytest.raises(ValueError, match="NaN"):
        cache.extend(*new)
    with pytest.raises(ValueError, match="no backend"):
        cache.extend(*(x[:, :, 6:9] for x in (q, k, v, delta)), backend="nonesuch")
    assert cache.seen == 6 and torch.equal(cache.position_BGW, before)


def test_cropping_names_the_cache_that_can():
    with pytest.raises(Unsupported, match='cache="full"'):
        LiveKeys(4).crop(3)


def test_what_does_not_fit_is_refused(inputs):
    q, k, v, delta = inputs(B=1, H=4, G=2, T=3, D=8)
    for window in (0, True, 2.0):
        with pytest.raises(ValueError, match="at least 1"):
            LiveKeys(window)  # type: ignore[arg-type]
    cache = LiveKeys(2)
    with pytest.raises(ValueError, match="empty"):
        cache.attend(q[:, :, :1])
    cache.prefill(k, v, delta)
    one = (q[:, :, :1], k[:, :, :1], v[:, :, :1], delta[:, :, :1])
    with pytest.raises(ValueError, match="belong to extend"):
        cache.attend(q)
    with pytest.raises(ValueError, match="multiple of 2"):
        cache.attend(q[:, :3, :1])
    with pytest.raises(ValueError, match="the keys are torch"):
        cache.attend(q[:, :, :1].double())
    for bad in (delta.half(), delta[:, :1], delta[:, :, :2]):
        with pytest.raises(ValueError, match="delta"):
            cache.append(k, v, bad)
    with pytest.raises(ValueError, match="prefill starts anew"):
        cache.append(k[:, :1], v[:, :1], delta[:, :1])
    with pytest.raises(ValueError, match="key_mask must be bool"):
        cache.append(k, v, delta, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="the plan is for window 3"):
        cache.prefill(k, v, delta, plan=make_plan(delta, 3))
    with pytest.raises(ValueError, match="beam_index"):
        cache.reorder(torch.tensor([0, 0]))
    for n in (1, 3):
        with pytest.raises(ValueError, match="no_grad"):
            cache.extend(*(x[:, :, :n] for x in (q.clone().requires_grad_(), k, v, delta)))
    for bad_call in (lambda: cache.extend(q, *one[1:]), lambda: decode_step(cache, q, k, v, delta)):
        with pytest.raises(ValueError, match="q must be"):
            bad_call()
    assert cache.seen == 3
