"""Haystacks of text: exactly so long, nothing but text in them, needles between sentences, answers where labels are."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmabench.tasks import needle_wording as wording
from dmabench.tasks import synthetic_text, tokenizer
from dmabench.tasks.haystacks import KINDS, counts
from dmabench.tasks.text_haystacks import POOL, TextHaystacks
from dmabench.tasks.text_pieces import Pieces, sentences

DOCUMENTS = [text for text, _ in zip(synthetic_text.documents(), range(60), strict=False)]
TEXT = " ".join(sentences(DOCUMENTS))
PIECES = Pieces(tokenizer.train([TEXT, "4821907 1234567"], 500).tokenizer)
LONGEST, NEEDLES = 900, 3
NEEDLE = re.compile(r" One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d{7})\.")


def make(seed=0, longest=LONGEST, needles=NEEDLES, documents=DOCUMENTS):
    return TextHaystacks(documents, "made-up", PIECES, needles, longest, seed)


HAY = make()


def read(haystacks, kind, length, row, depth=None):
    """The words of an example, its hay, and the answers that are labels."""
    made = haystacks.batch(kind, length, np.asarray([row]), depth)
    ids, labels = made.input_ids[0], made.labels[0]
    assert ids[0] == PIECES.begin[0] and len(ids) == length
    decode = PIECES.backend.decode
    last = labels[labels >= 0][-1:]  # the one token of the answer that is no input
    words = decode([*ids[1:].tolist(), *last.tolist()], skip_special_tokens=False)
    start, several = len(wording.introduction(counts(kind, NEEDLES)[1] > 1)), counts(kind, NEEDLES)[1] > 1
    assert words.startswith(wording.introduction(several))
    hay, question = words[start:].split("\n", 1)
    answers = re.findall(r"\d{7}", decode(labels[labels >= 0].tolist()).replace(" ", ""))
    own = decode(labels[made.own[0]].tolist()).strip()
    return words, hay, question, answers, own, made.depths[0]


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 10_000),
    st.integers(600, LONGEST),
    st.sampled_from([None, 0, 13, 50, 99, 100]),
)
@settings(deadline=None, max_examples=40)
def test_an_example_is_text_with_needles_between_sentences_and_a_question(kind, row, length, depth):
    words, hay, question, answers, own, where = read(HAY, kind, length, row, depth)
    count, asked = counts(kind, NEEDLES)
    needles = NEEDLE.findall(hay)
    assert len(needles) == count and len({value for _, value in needles}) == count
    assert len({key for key, _ in needles}) == (1 if KINDS[kind].same_key else count)

    text = NEEDLE.sub("", hay)
    assert text in f" {TEXT}" and text[-1] in '.?"'  # what is left is one run of the text, up to a sentence's end
    gaps = [0, *np.cumsum([len(one) + 1 for one in sentences([text])]) - 1, len(text)]
    for match in NEEDLE.finditer(hay):
        before = NEEDLE.sub("", hay[: match.start()])
        assert len(before) in (0, len(text)) or before[-1] in '.?"'
        assert any(abs(len(before) - gap) <= 1 for gap in gaps)

    keys = list(dict.fromkeys(re.findall(r"[a-z]+-[a-z]+", question.split("?")[0])))
    assert question.startswith(wording.question(keys, asked > 1)[1:])
    by_key = {}
    for key, value in needles:  # in the order of the text
        by_key.setdefault(key, []).append(value)
    assert answers == [value for key in keys for value in by_key[key]]
    assert words.endswith(f" {wording.listed(answers)}")
    assert own in answers

    first = next(match for match in NEEDLE.finditer(hay) if match[2] == own)
    before = NEEDLE.sub("", hay[: first.start()])
    share = len(PIECES.at_beginning(before)) / len(PIECES.at_beginning(text))
    assert abs(where - 100 * share) < 2
    if depth == 0:
        assert where == 0 and hay.startswith(first[0])
    if depth == 100:
        assert where == 100 and hay.endswith(first[0])


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 1000), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_the_depth_is_that_of_the_nearest_gap(kind, row, depth):
    where = HAY.batch(kind, LONGEST, np.asarray([row]), depth).depths[0]
    _, hay, *_ = read(HAY, kind, LONGEST, row, depth)
    text = NEEDLE.sub("", hay)
    tokens = [len(PIECES.at_beginning(f"{one}")) for one in sentences([text])]
    at = 100 * np.cumsum([0, *tokens]) / sum(tokens)
    assert abs(where - depth) <= np.abs(at - depth).min() + 1  # a cut sentence may be one token longer alone


def test_an_example_is_the_same_alone_in_a_batch_and_made_again():
    rows = np.arange(5)
    for kind in KINDS:
        whole = HAY.batch(kind, 600, rows, 30)
        alone = make().batch(kind, 600, rows[3:4], 30)
        assert torch.equal(whole.input_ids[3:4], alone.input_ids) and torch.equal(whole.labels[3:4], alone.labels)
        assert torch.equal(whole.own[3:4], alone.own) and whole.depths[3:4] == alone.depths
        other = make(seed=1).batch(kind, 600, rows, 30)
        assert not (other.input_ids == whole.input_ids).all(1).any()
    assert make().digest() == HAY.digest() != make(seed=1).digest()


def test_text_is_the_same_at_every_depth_and_a_longer_haystack_ends_with_that_of_a_shorter():
    def text(length, depth):
        return NEEDLE.sub("", read(HAY, "multi-key", length, 7, depth)[1])

    assert len({text(600, depth) for depth in (0, 25, 50, 100)}) == 1
    assert text(900, 50).endswith(text(600, 50)) and len(text(900, 50)) > len(text(600, 50))


def test_no_two_keys_or_values_of_many_examples_are_those_of_all():
    found = [read(HAY, "single", 500, row, 50)[4] for row in range(40)]
    assert len(set(found)) == 40


def test_a_text_that_is_too_short_is_refused_and_never_filled():
    few = DOCUMENTS[:2]
    tokens = len(PIECES.at_beginning(" ".join(sentences(few))))
    with pytest.raises(ValueError, match=rf"the text made-up has \d+ tokens, too few for a haystack of {2 * tokens}"):
        make(longest=2 * tokens, documents=few)
    short = make(longest=tokens - 2, documents=few)
    assert short.batch("single", tokens - 2, np.arange(20), 0).input_ids.shape == (20, tokens - 2)
    with pytest.raises(ValueError, match="has 0 tokens, too few"):
        make(documents=[])


def test_no_more_text_is_read_than_haystacks_take():
    read_of = []

    def endless():
        while True:
            read_of.append(len(DOCUMENTS[len(read_of) % 60]))
            yield DOCUMENTS[len(read_of) % 60]

    found = make(longest=500, documents=endless())
    assert POOL * 500 <= len(found.tokens) < POOL * 500 + 20_000


def test_what_cannot_be_is_refused():
    least = HAY.least("multi-query", 8)
    assert HAY.batch("multi-query", least, np.arange(8), 50).input_ids.shape == (8, least)
    with pytest.raises(ValueError, match="length 60 is too short for single"):
        HAY.batch("single", 60, np.arange(1))
    with pytest.raises(ValueError, match="length 901 is above 900"):
        HAY.batch("single", 901, np.arange(1))
    with pytest.raises(ValueError, match="no kind 'triple'"):
        HAY.batch("triple", 600, np.arange(1))
    with pytest.raises(ValueError, match="--needles 1"):
        make(needles=1)
