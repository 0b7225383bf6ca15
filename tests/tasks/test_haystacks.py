"""Haystacks: needles are where they should be, hay is hay, and every question has its answer in one place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmabench.tasks.haystacks import (
    ANSWER,
    FIRST,
    KEY,
    KINDS,
    NEEDLE,
    QUERY,
    VALUE,
    Curriculum,
    Haystacks,
    TrainingExamples,
    counts,
    least_length,
    least_vocab,
)

VOCAB, NEEDLES = 128, 4
HAY = Haystacks(VOCAB, NEEDLES, seed=0, split="test")


def questions(tokens: list[int]) -> list[tuple[int, int]]:
    """(key, mark) of each question in a row."""
    return [(tokens[at + 1], tokens[at + 2]) for at, token in enumerate(tokens) if token == QUERY]


def answers_to(tokens: list[int], asked: tuple[int, int]) -> list[list[int]]:
    """What a reader finds who looks for needles with that key and mark."""
    return [
        tokens[at + 3 : at + NEEDLE]
        for at, token in enumerate(tokens)
        if token == KEY and tuple(tokens[at + 1 : at + 3]) == asked
    ]


@st.composite
def cells(draw):
    kind, needles = draw(st.sampled_from(list(KINDS))), draw(st.integers(2, 6))
    length = least_length(kind, needles) + draw(st.integers(0, 60))
    vocab = least_vocab(needles) + draw(st.integers(0, 100))
    depth = draw(st.none() | st.integers(0, 100))
    return Haystacks(vocab, needles, draw(st.integers(0, 9)), "train"), kind, length, depth


@settings(max_examples=60, deadline=None)
@given(cells())
def test_a_reader_finds_each_answer_in_exactly_one_place(cell):
    haystacks, kind, length, depth = cell
    made = haystacks.batch(kind, length, np.arange(5), depth)
    count, asked = counts(kind, haystacks.needles)
    assert made.input_ids.shape == made.labels.shape == (5, length)
    for row, labels in zip(made.input_ids.tolist(), made.labels.tolist(), strict=True):
        found = [answers_to(row, question) for question in questions(row)]
        assert len(found) == asked and all(len(places) == 1 for places in found)
        told = [token for places in found for token in places[0]]
        assert [label for label in labels if label != -100] == told
        assert row.count(KEY) == count
        assert all(row[: row.index(QUERY)].count(token) == 1 for token in told)


@settings(max_examples=60, deadline=None)
@given(cells())
def test_labels_are_the_next_tokens_of_the_question(cell):
    haystacks, kind, length, depth = cell
    made = haystacks.batch(kind, length, np.arange(5), depth)
    labelled = made.labels != -100
    follows = labelled[:, :-1]
    assert torch.equal(made.labels[:, :-1][follows], made.input_ids[:, 1:][follows])
    assert labelled[:, -1].all()  # the last token of the last answer is asked for and never shown
    assert labelled.sum() == made.answers.size
    assert labelled.gather(1, torch.from_numpy(made.answers.reshape(5, -1))).all()


@settings(max_examples=60, deadline=None)
@given(cells())
def test_the_first_needle_has_as_much_hay_before_it_as_its_depth_says(cell):
    haystacks, kind, length, depth = cell
    made = haystacks.batch(kind, length, np.arange(5), depth)
    hay = length - counts(kind, haystacks.needles)[1] * NEEDLE + 1
    fillers = torch.zeros(VALUE + haystacks.vocab, dtype=torch.bool)
    fillers[list(haystacks.ranges["fillers"])] = True
    is_filler = fillers[made.input_ids]
    assert not is_filler[:, hay:].any()
    for row, starts, places in zip(range(5), made.needles, made.answers, strict=True):
        before, total = int(is_filler[row, : starts[0]].sum()), int(is_filler[row].sum())
        assert total == hay - len(starts) * NEEDLE
        assert made.input_ids[row, starts[0]] == KEY
        if depth is not None:
            assert before == round(depth / 100 * total)
            assert depth > 0 or starts[0] == 0
            assert depth < 100 or starts[0] == hay - NEEDLE
        # The first question, wherever it stands, is that of the first needle.
        told = made.input_ids[row, starts[0] + 3 : starts[0] + NEEDLE]
        assert torch.equal(made.labels[row, torch.from_numpy(places[0])], told)


def test_hay_has_no_token_of_a_needle_and_zipf_frequencies():
    made = HAY.batch("single", 400, np.arange(200), 50)
    ranges = HAY.ranges
    ends = [VALUE + NEEDLES, ranges["keys"].stop, ranges["values"].stop, VOCAB]
    assert ends == [ranges["keys"].start, ranges["values"].start, ranges["fillers"].start, ranges["fillers"].stop]
    counted = torch.bincount(made.input_ids.flatten(), minlength=VOCAB)
    assert counted[KEY] == counted[QUERY] == 200 and counted[VALUE] == 400 and counted[0] == 0
    assert counted[list(ranges["keys"])].sum() == 400
    assert counted[list(ranges["values"])].sum() == 200 * (2 * ANSWER - 1)
    fillers = counted[list(ranges["fillers"])].double()
    assert fillers[0] / fillers[9] == pytest.approx(10, rel=0.1)


def test_training_depths_are_uniform():
    made = HAY.batch("multi-key", 200, np.arange(4000))
    fillers = 200 - NEEDLE + 1 - NEEDLES * NEEDLE
    hay_before = made.needles[:, 0] - NEEDLE * (made.needles < made.needles[:, :1]).sum(1)
    shares = np.histogram(hay_before / fillers, bins=4, range=(0, 1))[0] / 4000
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_depend_on_seed_split_and_number_alone(kind):
    batch = HAY.batch(kind, 100, np.arange(8), 30)
    again = Haystacks(VOCAB, NEEDLES, 0, "test").batch(kind, 100, np.array([5, 2]), 30)
    assert torch.equal(again.input_ids, batch.input_ids[[5, 2]]) and torch.equal(again.labels, batch.labels[[5, 2]])
    for other in (Haystacks(VOCAB, NEEDLES, 1, "test"), Haystacks(VOCAB, NEEDLES, 0, "validation")):
        assert not torch.equal(other.batch(kind, 100, np.arange(8), 30).input_ids, batch.input_ids)


def test_depths_and_lengths_share_their_hay():
    def hay(length, depth):
        tokens = HAY.batch("multi-key", length, np.arange(4), depth).input_ids
        return [[token for token in row if token in HAY.ranges["fillers"]] for row in tokens.tolist()]

    assert hay(100, 0) == hay(100, 70)
    assert [row[: len(short)] for row, short in zip(hay(200, 0), hay(100, 0), strict=True)] == hay(100, 0)


def test_splits_have_no_example_in_common():
    rows = np.arange(3000)
    seen = [
        {tuple(row) for row in Haystacks(VOCAB, NEEDLES, 0, split).batch("single", 60, rows).input_ids.tolist()}
        for split in ("train", "validation", "test")
    ]
    assert all(len(one) == 3000 for one in seen) and not (seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2])


def test_training_mixes_the_kinds_evenly_after_a_start_with_single_needles():
    examples = TrainingExamples(HAY, tuple(KINDS), 100)
    input_ids, labels = examples.batch(3, 400)
    shape = [(int((row == KEY).sum()), int((row == QUERY).sum())) for row in input_ids]
    assert {one: shape.count(one) / 400 for one in set(shape)} == pytest.approx(
        {(1, 1): 0.25, (NEEDLES, 1): 0.25, (NEEDLES, NEEDLES): 0.5}, abs=0.08
    )
    halves = [examples.batch(6, 200), examples.batch(7, 200)]
    assert torch.equal(torch.cat([half[0] for half in halves]), input_ids)
    assert torch.equal(torch.cat([half[1] for half in halves]), labels)
    curriculum = Curriculum(examples, steps=10)
    assert ((curriculum.batch(0, 50)[0] == KEY).sum(1) == 1).all()
    assert torch.equal(curriculum.batch(int(10 * FIRST), 50)[0], examples.batch(int(10 * FIRST), 50)[0])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=f"vocabulary of 40 is too small .* {least_vocab(NEEDLES)} is the least"):
        Haystacks(40, NEEDLES, 0, "test")
    with pytest.raises(ValueError, match="needles must be at least 2"):
        Haystacks(VOCAB, 1, 0, "test")
    with pytest.raises(ValueError, match="length 20 is too short for multi-query: 71 is the least"):
        HAY.batch("multi-query", 20, np.arange(1))
    with pytest.raises(ValueError, match="depth 101 is not within 0 to 100"):
        HAY.batch("single", 60, np.arange(1), 101)
    with pytest.raises(ValueError, match="no kind 'double'"):
        HAY.batch("double", 60, np.arange(1))
