"""Parts of a text as tokens: together they are what the tokenizer makes of the whole."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dmabench.tasks import synthetic_text, tokenizer
from dmabench.tasks.text_pieces import LONGEST_SENTENCE, Pieces, sentences

TEXT = [text for text, _ in zip(synthetic_text.documents(), range(40), strict=False)]


def metaspace():
    """As Llama's: a blank is part of the word behind it, digits stand alone, and <s> begins every text."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)])
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator([*TEXT, "0123456789"], trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MAKERS = {
    "bytes": lambda: tokenizer.named("bytes").tokenizer,
    "byte-level": lambda: tokenizer.train([*TEXT, "4821907 1234567 is: 777. 3, 99, and 21"], 600).tokenizer,
    "metaspace": metaspace,
}


@pytest.fixture(scope="module", params=MAKERS)
def pieces(request):
    return Pieces(MAKERS[request.param]())


@given(st.integers(0, len(TEXT) - 1))
@settings(deadline=None)
def test_sentences_have_every_word_once(number):
    found = list(sentences([TEXT[number], "He said so.) Then: 3.5 miles\n\nA second\tparagraph"]))
    assert " ".join(found) == " ".join(TEXT[number].split()) + " He said so.) Then: 3.5 miles A second paragraph"
    assert found[-2:] == ["He said so.)", "Then: 3.5 miles A second paragraph"]
    assert all(one.rstrip("\"'”’)]_")[-1] in ".!?" for one in found[:-2])


def test_a_text_without_full_stops_is_parted_all_the_same():
    words = "word " * 1000
    found = list(sentences([words]))
    assert len(found) == 5 and " ".join(found) == words.strip() and max(map(len, found)) <= LONGEST_SENTENCE


def test_sentences_one_by_one_are_the_text_as_a_whole(pieces):
    first, *others = sentences(TEXT)
    told = pieces.behind_stop([f" {one}" for one in others])
    assert [*pieces.at_beginning(first), *chain(*told)] == pieces.at_beginning(" ".join([first, *others]))


def test_the_tokens_of_a_span_are_those_that_have_its_characters(pieces):
    text = "\nIs it 4821907, or 1234567?"
    spans = [(text.index("4"), text.index(",")), (text.index("1234"), text.index("?"))]
    ids, places = pieces.with_spans(text, spans)
    assert ids == pieces.behind_stop([text])[0]
    assert [pieces.backend.decode([ids[at] for at in place]).strip() for place in places] == ["4821907", "1234567"]


def test_numbers_are_the_tokens_that_values_are_made_of(pieces):
    numbers = set(pieces.numbers())
    assert all(pieces.backend.decode([one]).strip().isdigit() for one in numbers)
    ids, (places,) = pieces.with_spans(" is 4821907", [(4, 11)])
    assert {ids[place] for place in places} <= numbers


def test_a_prompt_begins_as_the_tokenizer_has_it_or_with_the_end_of_the_text_before():
    assert Pieces(metaspace()).begin == [1]
    words = tokenizer.named("bytes")
    assert Pieces(words.tokenizer).begin == [words.end]
    without = PreTrainedTokenizerFast(tokenizer_object=words.tokenizer.backend_tokenizer)
    assert Pieces(without).begin == []


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Pieces(object())
