"""Parts of a text as tokens, the way a tokenizer has them inside of the text, and sentences that can be parted."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

GAP = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]_])) (?=[\"'“‘(\[_]?[A-Z0-9])")
"""Between sentences, roughly: needles need gaps, not a grammar."""
LONGEST_SENTENCE = 1000
"""Characters, after which a text without full stops is parted at a blank."""
NUMBER = re.compile(r" ?[0-9]+")


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """The sentences of all texts, one after the other, blanks and line ends inside of them as single blanks."""
    for text in texts:
        for sentence in GAP.split(" ".join(text.split())):
            yield from textwrap.wrap(sentence, LONGEST_SENTENCE) if len(sentence) > LONGEST_SENTENCE else (sentence,)


class Pieces:
    """A tokenizer, asked for parts that stand behind a full stop."""

    def __init__(self, tokenizer: Any) -> None:
        """
        Args:
            tokenizer: of transformers, the fast kind.

        Raises:
            ValueError: another kind.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("its tokenizer has no tokenizer.json (a fast tokenizer): convert it first")
        self.backend = backend
        self.stop = self.at_beginning(".")
        plain, own = self.at_beginning("x"), list(tokenizer("x")["input_ids"])
        ends = next((one for one in (tokenizer.eos_token_id, tokenizer.sep_token_id) if one is not None), None)
        self.begin = own[: own.index(plain[0])] or ([] if ends is None else [int(ends)])
        """What a prompt begins with: what the tokenizer puts there by itself, else the token that ends the text before,
        as in training."""

    def at_beginning(self, text: str) -> list[int]:
        """Tokens of a text that nothing stands before."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def behind_stop(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text as they are behind a full stop. A text begins with its blank or line end."""
        found = self.backend.encode_batch([f".{text}" for text in texts], add_special_tokens=False)
        return [list(one.ids[self._cut(one.ids) :]) for one in found]

    def with_spans(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[list[int]]]:
        """As `behind_stop`, and for each span of characters the places of the tokens that have some of them."""
        found = self.backend.encode(f".{text}", add_special_tokens=False)
        cut = self._cut(found.ids)
        offsets = [(start - 1, end - 1) for start, end in found.offsets[cut:]]
        places = [
            [place for place, (start, end) in enumerate(offsets) if start < last and end > first]
            for first, last in spans
        ]
        return list(found.ids[cut:]), places

    def _cut(self, ids: list[int]) -> int:
        """Tokens of the full stop; none where it is one token with what follows."""
        return len(self.stop) if ids[: len(self.stop)] == self.stop else 0

    def numbers(self) -> list[int]:
        """The tokens that are digits and nothing else, a blank before them allowed."""
        every = range(self.backend.get_vocab_size())
        return [one for one in every if NUMBER.fullmatch(self.backend.decode([one], skip_special_tokens=False))]
