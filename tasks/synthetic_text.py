"""Made-up text, so that language training runs from a clone without a network or a file.

Words are syllables, drawn as often as Zipf's law says. A document has a topic (words that come up again) and people
whose names are told once and used throughout, so that short and long contexts both help to predict it. It is no
language: what is learned here says that training works, not how good an attention is at English.
"""

import functools
import itertools
import random
from collections.abc import Iterator

VERSION = 1
"""Of the text: raised whenever the generator changes, since caches are kept by it."""
DOCUMENTS = 2000
WORDS = 3000
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "an", "er", "is")]
FORMS = (
    "{name} {verb} the {noun} {place}.",
    "The {noun} was {adjective}, and {name} {verb} it.",
    '"Where is the {noun}?" asked {name}.',
    "{name} and {other} {verb} {place}; the {noun} {verb} too.",
    "It was {adjective} {place}, so {other} {verb} the {adjective} {noun}.",
)


def documents() -> Iterator[str]:
    """DOCUMENTS texts of 300 to 2,000 characters, always the same."""
    lexicon = _lexicon()
    for number in range(DOCUMENTS):
        yield _document(lexicon, random.Random(f"{VERSION} {number}"))


def _lexicon() -> dict[str, list[str]]:
    """Words of each class, the most frequent first."""
    draw = random.Random(f"{VERSION} words")
    found = dict.fromkeys("".join(draw.choices(SYLLABLES, k=draw.choice((1, 2, 2, 3)))) for _ in range(4 * WORDS))
    words = list(found)[:WORDS]
    classes = ("noun", "verb", "adjective", "name")
    lexicon = {name: words[at :: len(classes)] for at, name in enumerate(classes)}
    return lexicon | {"name": [word.capitalize() for word in lexicon["name"]]}


def _document(lexicon: dict[str, list[str]], draw: random.Random) -> str:
    topic = {name: _frequent(words, draw, 6) for name, words in lexicon.items()}
    sentences = []
    for _ in range(draw.randint(8, 32)):
        words = {name: draw.choice(topic[name]) if draw.random() < 0.7 else _one(lexicon[name], draw) for name in topic}
        words |= {"name": draw.choice(topic["name"][:3]), "other": draw.choice(topic["name"][:3])}
        place = f"{draw.choice(('in', 'near', 'under', 'behind'))} the {draw.choice(topic['noun'])}"
        sentences.append(draw.choice(FORMS).format(**words, place=place))
    return " ".join(sentences)


def _frequent(words: list[str], draw: random.Random, count: int) -> list[str]:
    return list(dict.fromkeys(_one(words, draw) for _ in range(4 * count)))[:count]


def _one(words: list[str], draw: random.Random) -> str:
    return draw.choices(words, cum_weights=_zipf(len(words)))[0]


@functools.cache
def _zipf(count: int) -> list[float]:
    return list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
