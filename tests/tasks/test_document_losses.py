"""Losses of documents in a row: nothing but float32's rounding is lost, and they stay small."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.document_losses import pack, unpack


@given(st.lists(st.tuples(st.floats(0, 1e6, width=32), st.integers(0, 2**32 - 1)), max_size=20))
def test_they_come_back(pairs):
    nll, tokens = np.array([one for one, _ in pairs], float), np.array([one for _, one in pairs], np.int64)
    told = unpack(json.loads(json.dumps(pack(nll, tokens))))
    np.testing.assert_array_equal(told[0], nll)
    np.testing.assert_array_equal(told[1], tokens)


def test_they_are_small():
    draw = np.random.default_rng(0)
    tokens = draw.integers(100, 2000, 1000)
    assert len(pack(tokens * draw.normal(3, 0.5, 1000), tokens)) < 9000


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="no losses of documents"):
        unpack("abcde")
