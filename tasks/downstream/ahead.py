"""Texts in tokens before lm-eval asks for them one by one, in Python: many at once, on every core."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 4096
PARALLEL = "TOKENIZERS_PARALLELISM"


def texts_of(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """What lm-eval encodes for pairs of context and continuation: both together, and the context alone without spaces
    at its end. Each once; nothing of pairs without context."""
    found: dict[str, None] = {}
    for context, continuation in pairs:
        if context:
            found[context + continuation] = found[context.rstrip()] = None
    return list(found)


def encode(tokenizer: Any, texts: Sequence[str], **how: Any) -> dict[str, NDArray[np.int32]]:
    """text -> tokens, the same that tokenizer.encode(text, **how) gives."""
    found: dict[str, NDArray[np.int32]] = {}
    with _parallel():
        for at in range(0, len(texts), AT_ONCE):
            some = list(texts[at : at + AT_ONCE])
            ids = tokenizer(some, return_attention_mask=False, **how)["input_ids"]
            found.update(zip(some, (np.asarray(one, np.int32) for one in ids), strict=True))
    return found


@contextmanager
def _parallel() -> Iterator[None]:
    """The library looks at the variable in each call; others than this one may fork, and want it off."""
    before = os.environ.get(PARALLEL)
    os.environ[PARALLEL] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLEL]
        else:
            os.environ[PARALLEL] = before
