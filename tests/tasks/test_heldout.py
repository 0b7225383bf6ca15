"""Perplexity and bits per byte of held-out text, against sums made token by token."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmabench.tasks import heldout
from dmabench.tasks.heldout import text_loss

END = 0


def texts(*lengths):
    draw = np.random.default_rng(0)
    return [(draw.integers(1, 100, n).astype(np.int64), draw.integers(0, 5, n).astype(np.int64)) for n in lengths]


@pytest.fixture(params=["mha", "dma"])
def model(small, request):
    return small.model(request.param)


def by_hand(model, documents, seqlen):
    """(document, position in its sequence, loss, bytes, right) of every token, one forward a sequence."""
    found = []
    for number, (tokens, sizes) in enumerate(documents):
        whole = np.concatenate([[END], tokens])
        for start in range(0, len(tokens), seqlen):
            piece = torch.from_numpy(whole[start : start + seqlen + 1])
            with torch.no_grad():
                logits = model(piece[None, :-1]).logits[0].float()
            losses = torch.nn.functional.cross_entropy(logits, piece[1:], reduction="none").tolist()
            right = (logits.argmax(-1) == piece[1:]).tolist()
            found += [(number, at, loss, sizes[start + at], right[at]) for at, loss in enumerate(losses)]
    return found


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_every_token_once_whatever_goes_together(model, monkeypatch, rows):
    monkeypatch.setattr(heldout, "MOST_SEQUENCES", rows)
    documents, seqlen = texts(50, 7, 24, 1), 24
    hand = by_hand(model, documents, seqlen)
    told = []
    found = text_loss(model, documents, END, seqlen, told=told.append)
    whole = found.whole
    assert whole.tokens == len(hand) == sum(told) == 82
    assert whole.bytes == sum(one[3] for one in hand)
    total = sum(one[2] for one in hand)
    assert whole.nll == pytest.approx(total, rel=1e-5)
    assert whole.perplexity == pytest.approx(math.exp(total / 82), rel=1e-5)
    assert whole.bits_per_byte == pytest.approx(total / math.log(2) / whole.bytes, rel=1e-5)
    assert found.correct == found.score.correct == sum(one[4] for one in hand)
    assert found.score.loss == pytest.approx(total / 82, rel=1e-5)
    for number in range(4):
        mine = [one for one in hand if one[0] == number]
        assert found.document_nll[number] == pytest.approx(sum(one[2] for one in mine), rel=1e-5)
        assert found.document_tokens[number] == len(mine)
        assert found.document_bytes[number] == sum(one[3] for one in mine)
    parts = found.by_position()
    assert [(part.start, part.end) for part in parts] == [(0, 16), (16, 24)]
    for part in parts:
        mine = [one for one in hand if part.start <= one[1] < part.end]
        assert (part.tokens, part.bytes) == (len(mine), sum(one[3] for one in mine))
        assert part.nll == pytest.approx(sum(one[2] for one in mine), rel=1e-5)


def test_positions_end_where_texts_do(small):
    found = text_loss(small.model("mha"), texts(40), END, 128)
    assert [(part.start, part.end) for part in found.by_position()] == [(0, 16), (16, 32), (32, 40)]


def test_the_training_mode_comes_back(small):
    model = small.model("mha").train()
    text_loss(model, texts(5), END, 8)
    assert model.training


@pytest.mark.parametrize(
    ("most", "lengths"), [(100, [50, 7, 24]), (60, [29, 7, 24]), (30, [11, 7, 11]), (2, [1, 1]), (3, [1, 1, 1])]
)
def test_the_longest_documents_are_cut_first(small, most, lengths):
    found = text_loss(small.model("mha"), texts(50, 7, 24), END, 16, most=most)
    assert found.document_tokens.tolist() == lengths


def test_no_text_is_refused(small):
    for documents in ([], texts(0, 0)):
        with pytest.raises(ValueError, match="there is no held-out text to score"):
            text_loss(small.model("mha"), documents, END, 8)


def test_a_certain_model_has_perplexity_one():
    """Logits that say the next token, of a model that is none of ours."""

    class Certain(torch.nn.Linear):
        def get_output_embeddings(self):
            return SimpleNamespace(weight=torch.zeros(10, 1))

        def forward(self, input_ids):
            return SimpleNamespace(logits=1000.0 * torch.nn.functional.one_hot((input_ids + 1) % 10, 10))

    tokens = np.arange(1, 10)
    found = text_loss(Certain(1, 1), [(tokens, np.ones(9, np.int64))], 0, 4)
    assert found.whole.perplexity == 1 and found.correct == 9 and found.whole.bits_per_byte == 0
