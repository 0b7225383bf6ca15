"""Examples of copy, select and induce: every label follows from one place before it; splits, seeds and chance."""

from bisect import bisect_left
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.pattern_examples import SPLITS, START, Copy, Induce, Select, TrainingSet
from dmabench.tasks.scoring import NO_LABEL

USUAL = [
    Copy(40, 101, distance=17, copied=9),
    Select(40, 101, marked=6),
    Induce(40, 151, pairs=6),
]
usual = pytest.mark.parametrize("layout", USUAL, ids=["copy", "select", "induce"])


def smallest(layout):
    """The same with the smallest vocabulary that it does not refuse."""
    found = bisect_left(range(4000), True, key=lambda vocab: replace(layout, vocab=vocab).refusal() is None)
    return replace(layout, vocab=found)


def examples(layout, split, seed, count=4):
    """Tokens and labels of each example, as lists."""
    input_ids, labels = layout.make(seed, split, range(count))
    assert input_ids.shape == labels.shape == (count, layout.seqlen)
    assert input_ids.dtype == labels.dtype == torch.int64
    assert input_ids.min() >= 0
    assert input_ids.max() < layout.vocab
    return zip(input_ids.tolist(), labels.tolist(), strict=True)


def asked(labels):
    return [place for place, label in enumerate(labels) if label != NO_LABEL]


splits = st.sampled_from(sorted(SPLITS))
seeds = st.integers(0, 2**31)
spare = st.integers(0, 30)


@given(st.integers(1, 40), st.integers(1, 12), spare, spare, splits, seeds)
def test_a_copy_is_what_stands_at_the_distance(distance, copied, room, more, split, seed):
    layout = smallest(Copy(distance + copied + room, 0, distance=distance, copied=copied))
    layout = replace(layout, vocab=layout.vocab + more)
    for ids, labels in examples(layout, split, seed):
        places = asked(labels)
        assert places == list(range(places[0], places[0] + copied))
        sources = [place - distance for place in places]
        assert sources[0] >= 0
        assert [labels[place] for place in places] == [ids[source] for source in sources]
        contents = range(1, 1 + layout.each)
        assert all((ids[place] in contents) == (place in sources) for place in range(layout.seqlen))


@given(st.integers(1, 12), spare, spare, splits, seeds)
def test_what_is_marked_is_repeated_in_order(marked, room, more, split, seed):
    layout = smallest(Select(2 * marked + room, 0, marked=marked))
    layout = replace(layout, vocab=layout.vocab + more)
    for ids, labels in examples(layout, split, seed):
        seen, answers = ids[: layout.among], ids[layout.among :]
        chosen = [token for token in seen if 1 <= token <= layout.each]
        assert len(set(chosen)) == marked
        assert asked(labels) == list(range(layout.seqlen - marked, layout.seqlen))
        assert labels[layout.among :] == chosen
        assert answers == [START, *chosen[:-1]]
        assert START not in seen


@given(st.integers(1, 12), spare, spare, splits, seeds)
def test_a_key_is_answered_by_the_value_behind_it_and_by_nothing_else(pairs, room, more, split, seed):
    layout = smallest(Induce(4 * pairs + room, 0, pairs=pairs))
    layout = replace(layout, vocab=layout.vocab + more)
    keys, values = range(1, 1 + layout.each), range(1 + layout.each, 1 + 2 * layout.each)
    for ids, labels in examples(layout, split, seed):
        places = asked(labels)
        assert places == list(range(layout.among, layout.seqlen, 2))
        assert len({ids[place] for place in places}) == pairs
        assert len({labels[place] for place in places}) == pairs
        for place in places:
            assert ids[place] in keys
            assert labels[place] in values
            assert ids[place + 1] == labels[place]
            assert ids[:place].count(ids[place]) == ids[:place].count(labels[place]) == 1
            assert ids[ids.index(ids[place]) + 1] == labels[place]
        assert all(token > values[-1] for token in set(ids[: layout.among]) - set(ids[layout.among :]))


@usual
def test_an_example_is_the_same_alone_and_in_any_batch(layout):
    together = layout.make(3, "test", range(50))
    alone = layout.make(3, "test", np.array([49, 7]))
    assert all(torch.equal(one, many[[49, 7]]) for one, many in zip(alone, together, strict=True))
    other = layout.make(4, "test", range(50))[0]
    assert (together[0] != other).any(1).all()


@pytest.mark.parametrize(
    "layout",
    [*USUAL, *map(smallest, [Copy(8, 0, distance=4, copied=4), Select(8, 0, marked=3), Induce(12, 0, pairs=2)])],
    ids=lambda layout: f"{type(layout).__name__}-{layout.vocab}",
)
def test_splits_share_nothing_that_is_asked_for(layout):
    """Also where the vocabulary allows so few contents that chance alone would bring some into two splits."""
    found = {}
    for split in SPLITS:
        ids, labels = layout.make(0, split, range(1000))
        if isinstance(layout, Induce):  # pairs in the order in which they are shown, not asked for
            shown = ids[:, : layout.among]
            contents = shown[shown <= 2 * layout.each].reshape(len(ids), -1)
        else:
            contents = labels[labels != NO_LABEL].reshape(len(ids), -1)
        found[split] = set(map(tuple, contents.tolist()))
        assert len(found[split]) > 100
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]


@usual
def test_contents_and_places_are_drawn_evenly(layout):
    ids, labels = layout.make(0, "train", range(4000))
    before = ids[:, : layout.seqlen - layout.size * layout.parts + layout.size]  # the context, answers left out
    answers = labels[labels != NO_LABEL].numpy()
    counts = [np.bincount(answers - answers.min(), minlength=layout.each)]
    contents = 2 * layout.each if isinstance(layout, Induce) else layout.each
    counts.append(np.bincount(before[before > contents].numpy() - contents - 1))
    if not isinstance(layout, Copy):
        kept = ids[:, : layout.among]
        first = ((kept <= layout.each) & (kept > 0)).sum(0).numpy()
        counts.append(first if isinstance(layout, Select) else first[layout.pairs : -layout.pairs])
    for observed in counts:
        expected = observed.mean()
        freedom = len(observed) - 1
        assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_a_copied_segment_starts_anywhere():
    _, labels = Copy(40, 101, distance=17, copied=9).make(0, "train", range(2000))
    starts = (labels != NO_LABEL).int().argmax(1) - 17
    assert set(starts.tolist()) == set(range(40 - 17 - 9 + 1))


@usual
def test_chance_is_what_guessing_among_what_may_be_right_gives(layout):
    """Guesses: copy: any token of contents. select: any marked one of the example. induce: any of its values."""
    labels = layout.make(1, "test", range(3000))[1].numpy()
    random = np.random.default_rng(0)
    targets = labels[labels != NO_LABEL].reshape(len(labels), -1)
    if isinstance(layout, Copy):
        guesses = random.integers(1, 1 + layout.each, targets.shape)
    else:
        guesses = np.take_along_axis(targets, random.integers(0, layout.size, targets.shape), 1)
    assert (guesses == targets).mean() == pytest.approx(layout.chance, abs=4 * (layout.chance / targets.size) ** 0.5)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Copy(64, 64, distance=64, copied=1), "must be below --seqlen, so at most 63"),
        (Copy(64, 64, distance=40, copied=25), "at most 24 can be copied, or raise --seqlen to 65"),
        (Copy(64, 64, distance=0, copied=4), "a distance and a number of tokens of at least 1"),
        (Copy(64, 64, distance=4, copied=1), "smallest that does has 2049"),
        (Select(64, 64, marked=0), "at least one marked token"),
        (Select(64, 256, marked=33), "shortest --seqlen that holds them is 66"),
        (Select(64, 32, marked=16), "smallest that does has 33"),
        (Induce(64, 64, pairs=0), "at least one pair"),
        (Induce(64, 64, pairs=17), "shortest --seqlen that holds them is 68"),
        (Induce(64, 48, pairs=16), "smallest that does has 49"),
    ],
)
def test_impossible_layouts_say_what_would_do(layout, words):
    assert words in layout.refusal()
    with pytest.raises(ValueError, match=words):
        layout.make(0, "train", range(1))


@usual
def test_what_a_refusal_names_is_the_limit(layout):
    least = smallest(layout)
    assert f"the smallest that does has {least.vocab}" in replace(least, vocab=least.vocab - 1).refusal()
    assert least.make(0, "test", range(20))[0].max() < least.vocab


@usual
def test_training_takes_new_examples_every_step(layout):
    data = TrainingSet(layout, seed=1)
    first, second = data.batch(0, 8)[0], data.batch(1, 8)[0]
    assert (first[:, None] != second[None]).any(-1).all()
    assert torch.equal(torch.cat([first, second]), layout.make(1, "train", range(16))[0])
    assert torch.equal(TrainingSet(layout, seed=1).batch(1, 8)[1], data.batch(1, 8)[1])
