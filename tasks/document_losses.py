"""Losses of single documents as a text that fits into a row, so that models can be compared document by document."""

import base64
import zlib

import numpy as np
from numpy.typing import NDArray


def pack(nll: NDArray[np.float64], tokens: NDArray[np.int64]) -> str:
    """Sums of negative log-probabilities [D] (kept in float32) and numbers of tokens [D]: about 8 characters each."""
    raw = np.asarray(tokens, "<u4").tobytes() + np.asarray(nll, "<f4").tobytes()
    return base64.b85encode(zlib.compress(raw, 9)).decode()


def unpack(packed: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What `pack` was given.

    Raises:
        ValueError: a text that it did not make.
    """
    try:
        raw = zlib.decompress(base64.b85decode(packed))
    except zlib.error as error:
        raise ValueError(f"these are no losses of documents: {error}") from error
    half = len(raw) // 2
    return np.frombuffer(raw[half:], "<f4").astype(np.float64), np.frombuffer(raw[:half], "<u4").astype(np.int64)
