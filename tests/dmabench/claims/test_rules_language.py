"""Verdicts about loss on held-out text, on rows made up for the test."""

import numpy as np
import pytest

from dmabench.claims.verdicts import load_claims, verdicts
from dmabench.tasks.document_losses import pack

SIZES = {"80M": 80e6, "200M": 200e6, "680M": 680e6}
TOKENS = np.random.default_rng(0).integers(50, 500, 400)
HARD = np.random.default_rng(1).normal(0, 0.8, 400)
ENOUGH = 1e11


@pytest.fixture(scope="module")
def judge():
    """(claim id, rows) -> the one verdict."""
    claims = {claim.id: claim for claim in load_claims()}

    def one(claim_id, rows):
        (found,) = verdicts([claims[claim_id]], rows)
        return found

    return one


def row(attention, size, loss, seed=0, **fields):
    """A model whose documents scatter by 0.8 together, and by 0.05 by themselves."""
    own = np.random.default_rng([ord(one) for one in f"{attention}{size}{seed}"]).normal(0, 0.05, len(TOKENS))
    nll = TOKENS * (loss + HARD + own)
    told = {"task": "scaling", "status": "PASSED", "run": "r", "attention": attention, "size": size, "seed": seed}
    told |= {"lr": 1e-3, "data": "books", "seqlen": 2048, "test_loss": nll.sum() / TOKENS.sum(), "accuracy": 0.3}
    told |= {"validation_loss": loss, "parameters": SIZES[size], "trained_tokens": ENOUGH, "text_key": "a"}
    return (
        told | {"document_losses": pack(nll, TOKENS), "window": None if attention in ("mha", "mla") else 512} | fields
    )


def rows(leads, seeds=3, jitter=0.002, **fields):
    """All attentions at each size; DMA's loss is below the best of the others by the lead."""
    return [
        row(
            kind,
            size,
            3 + above - (lead if kind == "dma" else 0) + jitter * (seed - 1) * (kind == "dma"),
            seed,
            **fields,
        )
        for size, lead in leads.items()
        for kind, above in (("mha", 0.0), ("swa", 0.2), ("mla", 0.1), ("nsa", 0.05), ("dma", 0.0))
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("lead", "verdict"), [(0.05, "HOLDS"), (-0.05, "FAILS"), (0.0, "NOT_SEPARATED")])
def test_the_best_is_ahead_of_the_best_other(judge, lead, verdict):
    found = judge("perplexity-best-80M", rows({"80M": lead}))
    assert found.verdict == verdict and "against mha" in found.detail


def test_another_size_is_another_claim(judge):
    assert judge("perplexity-best-200M", rows({"80M": 0.05})).verdict == "NO_ROWS"


def test_seeds_that_scatter_and_too_few_of_them_separate_nothing(judge):
    assert judge("perplexity-best-80M", rows({"80M": 0.05}, jitter=0.1)).verdict == "NOT_SEPARATED"
    assert judge("perplexity-best-80M", rows({"80M": 0.05}, seeds=2)).verdict == "NOT_SEPARATED"


def test_documents_must_agree_too(judge):
    few = [{**one, "document_losses": None} for one in rows({"80M": 0.05})]
    assert judge("perplexity-best-80M", few).verdict == "NOT_SEPARATED"
    other = rows({"80M": 0.05})
    other[0]["text_key"] = "b"
    assert judge("perplexity-best-80M", other).verdict == "NOT_SEPARATED"


def test_an_attention_that_was_not_run_may_be_better(judge):
    some = [one for one in rows({"80M": 0.05}) if one["attention"] != "nsa"]
    assert "not measured: nsa" in judge("perplexity-best-80M", some).detail
    behind = [one for one in rows({"80M": -0.05}) if one["attention"] != "nsa"]
    assert judge("perplexity-best-80M", behind).verdict == "FAILS"


def test_a_short_training_says_nothing(judge):
    found = judge("perplexity-best-80M", rows({"80M": 0.05}, trained_tokens=4e7))
    assert found.verdict == "NOT_SEPARATED" and "trained on 4e+07 tokens" in found.detail


@pytest.mark.parametrize(
    ("leads", "verdict"),
    [((0.0, 0.05, 0.1), "HOLDS"), ((0.1, 0.05, 0.0), "FAILS"), ((0.05, 0.05, 0.05), "NOT_SEPARATED")],
)
def test_a_lead_grows_with_size(judge, leads, verdict):
    found = judge("perplexity-lead-grows", rows(dict(zip(SIZES, leads, strict=True))))
    assert found.verdict == verdict and "slope over 80M, 200M, 680M" in found.detail


def test_two_sizes_do_not_grow(judge):
    assert judge("perplexity-lead-grows", rows({"80M": 0.0, "200M": 0.1})).verdict == "NO_ROWS"


def test_nothing_holds_about_rivals_that_were_not_run(judge):
    leads = dict(zip(SIZES, (0.0, 0.05, 0.1), strict=True))
    found = judge("perplexity-lead-grows", [one for one in rows(leads) if one["attention"] in ("mha", "dma")])
    assert found.verdict == "NOT_SEPARATED" and "not measured: swa, mla, nsa" in found.detail


def test_the_rate_is_the_one_that_validation_chose(judge):
    wild = [{**one, "lr": 1e-2, "validation_loss": 9.0} for one in rows({"80M": -0.5})]
    assert judge("perplexity-best-80M", rows({"80M": 0.05}) + wild).verdict == "HOLDS"
