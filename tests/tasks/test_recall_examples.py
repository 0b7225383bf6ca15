"""Examples of recall: each query has one answer, and it is in its pair; fillers, gaps, splits and seeds as promised."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.recall_examples import NO_LABEL, SPLITS, Layout, Stage, TrainingSet


@st.composite
def layouts(draw):
    """Layouts that can be, from the smallest vocabulary that fits on."""
    pairs = draw(st.integers(1, 12))
    seqlen = 2 * draw(st.integers(2 * pairs, 2 * pairs + 40))
    least = {1: 32, 2: 7, 3: 5, 4: 5}.get(pairs, pairs)
    vocab = 3 * least + 1 + draw(st.integers(0, 30))
    return Layout(pairs, seqlen, vocab, draw(st.sampled_from([0.01, 0.5, 1.0])), draw(st.booleans()))


@given(layouts(), st.sampled_from(sorted(SPLITS)), st.integers(0, 2**31))
def test_every_query_is_answered_by_exactly_one_pair_before_it(layout, split, seed):
    assert layout.refusal() is None
    recall = layout.make(seed, split, range(4))
    P = layout.pairs
    keys, values, fillers = (set(layout.ranges[name]) for name in ("keys", "values", "fillers"))
    assert keys | values | fillers | {0} == set(range(layout.vocab))
    assert len(keys) + len(values) + len(fillers) + 1 == layout.vocab
    assert recall.input_ids.shape == recall.labels.shape == (4, layout.seqlen)
    rest = fillers if layout.fillers else {0}
    for ids, labels, queries in zip(
        recall.input_ids.tolist(), recall.labels.tolist(), recall.queries.tolist(), strict=True
    ):
        answers = dict(zip(ids[0 : 2 * P : 2], ids[1 : 2 * P : 2], strict=True))
        assert len(answers) == len(set(answers.values())) == P
        assert set(answers) <= keys
        assert set(answers.values()) <= values
        asked = [place for place, label in enumerate(labels) if label != NO_LABEL]
        assert asked == sorted(queries)
        assert all(place >= 2 * P and place % 2 == 0 for place in asked)
        assert [ids[place] for place in queries] == ids[0 : 2 * P : 2]
        for place in asked:
            assert labels[place] == answers[ids[place]]
            assert ids[:place].count(ids[place]) == 1
        assert {ids[place] for place in range(2 * P, layout.seqlen) if place not in asked} <= rest


def test_gaps_follow_the_power_law():
    """With one pair, the law itself: weight (g + 1)^(a - 1) for each gap g."""
    count = 20_000
    for power in (0.01, 1.0):
        queries = Layout(1, 22, 200, power).make(0, "train", range(count)).queries[:, 0]
        observed = np.bincount(((queries - 2) // 2).numpy(), minlength=10)
        shares = np.arange(1.0, 11) ** (power - 1)
        expected = shares / shares.sum() * count
        assert ((observed - expected) ** 2 / expected).sum() < 9 + 4 * 18**0.5


def test_tokens_are_drawn_evenly():
    recall = Layout(4, 64, 100).make(0, "train", range(4000))
    for name, places in (("keys", slice(0, 8, 2)), ("values", slice(1, 8, 2)), ("fillers", slice(9, None, 2))):
        tokens = Layout(4, 64, 100).ranges[name]
        drawn = recall.input_ids[:, places].flatten().numpy() - tokens.start
        observed = np.bincount(drawn, minlength=len(tokens))
        expected = drawn.size / len(tokens)
        freedom = len(tokens) - 1
        assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_an_example_is_the_same_alone_and_in_any_batch():
    layout = Layout(8, 64, 200)
    together = layout.make(3, "test", range(50))
    alone = layout.make(3, "test", np.array([49, 7]))
    for field in ("input_ids", "labels", "queries"):
        assert torch.equal(getattr(alone, field), getattr(together, field)[[49, 7]])
    other = layout.make(4, "test", range(50))
    assert (together.input_ids != other.input_ids).any(1).all()


@pytest.mark.parametrize("layout", [Layout(4, 32, 256), Layout(2, 8, 22)], ids=["usual", "few contexts"])
def test_no_context_is_in_two_splits(layout):
    """Also where the vocabulary allows so few contexts (1764) that chance alone would bring some into two."""
    found = {}
    for split in SPLITS:
        recall = layout.make(0, split, range(1000))
        found[split] = {tuple(row) for row in recall.input_ids[:, : 2 * layout.pairs].tolist()}
        assert len(found[split]) > 300
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(512, 1024), "shortest sequence that holds them has 2048"),
        (Layout(512, 2048, 1000), "smallest that does has 1537"),
        (Layout(4, 63), "must be even: 64"),
        (Layout(0, 64), "at least one pair"),
    ],
)
def test_impossible_layouts_say_what_would_do(layout, words):
    assert words in layout.refusal()
    with pytest.raises(ValueError, match=words.split()[0]):
        layout.make(0, "train", range(1))


def test_what_a_refusal_names_is_the_limit():
    assert Layout(512, 2048, 1537).refusal() is None
    assert Layout(512, 2048, 1536).refusal() is not None
    assert Layout(1, 4, 97).refusal() is None
    assert "smallest that does has 97" in Layout(1, 4, 96).refusal()


def test_a_hundred_thousand_examples_take_less_than_two_seconds_of_one_core():
    taken = []
    for seed in range(2):
        start = time.thread_time()
        recall = Layout(4, 64).make(seed, "train", range(100_000))
        taken.append(time.thread_time() - start)
    assert recall.input_ids.shape == (100_000, 64)
    assert min(taken) < 2


def test_a_set_comes_again_each_epoch_in_another_order():
    layout = Layout(4, 16, 60)
    data = TrainingSet([Stage(0, layout)], seed=1, examples=10)
    rows = np.concatenate([data.rows(step, 4)[1] for step in range(10)]).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in rows.tolist())
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 4
    again = TrainingSet([Stage(0, layout)], seed=1, examples=10)
    assert all(torch.equal(a, b) for a, b in zip(again.batch(7, 4), data.batch(7, 4), strict=True))
    expected = layout.make(1, "train", data.rows(7, 4)[1])
    assert torch.equal(data.batch(7, 4)[0], expected.input_ids)
    assert torch.equal(data.batch(7, 4)[1], expected.labels)


def test_fresh_examples_never_come_again():
    data = TrainingSet([Stage(0, Layout(4, 16, 60))], seed=1)
    assert np.concatenate([data.rows(step, 4)[1] for step in range(5)]).tolist() == list(range(20))


def test_stages_change_the_layout_at_their_step():
    data = TrainingSet([Stage(0, Layout(2, 8, 60)), Stage(3, Layout(4, 16, 60))], seed=1)
    assert data.batch(2, 5)[0].shape == (10, 8)  # as many tokens a step
    assert np.concatenate([data.rows(step, 5)[1] for step in range(3)]).tolist() == list(range(30))
    assert data.rows(3, 5)[1].tolist() == list(range(5))
    ids, labels = data.batch(3, 5)
    assert ids.shape == (5, 16)
    assert (labels != NO_LABEL).sum() == 20
