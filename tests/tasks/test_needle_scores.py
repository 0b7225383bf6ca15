"""Scores of needles: a reader that looks them up scores 1, one that guesses scores nothing, and sums come out."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmabench.tasks.haystacks import ANSWER, KEY, KINDS, NEEDLE, QUERY, Haystacks
from dmabench.tasks.needle_scores import EFFECTIVE, score, summaries

VOCAB = 96
HAY = Haystacks(VOCAB, needles=3, seed=0, split="test")


class Reader(nn.Module):
    """Looks up what follows the needle that the last question asks for, as far back as it can see."""

    def __init__(self, sight: int = 10_000) -> None:
        super().__init__()
        self.lm_head = nn.Identity()
        self.sight = sight
        self.weight = nn.Parameter(torch.zeros(1))

    def model(self, input_ids: torch.Tensor) -> SimpleNamespace:
        """One-hot "hidden states" [B, T, VOCAB], at the token that the reader takes for the next."""
        hidden = torch.zeros(*input_ids.shape, VOCAB)
        for row, tokens in enumerate(input_ids.tolist()):
            for at in range(len(tokens)):
                hidden[row, at, self.next(tokens[: at + 1])] = 9.0
        return SimpleNamespace(last_hidden_state=hidden)

    def next(self, seen: list[int]) -> int:
        """0 where there is no question or no needle for it in sight."""
        if QUERY not in seen:
            return 0
        asked = len(seen) - 1 - seen[::-1].index(QUERY)
        for at in range(max(0, len(seen) - self.sight), asked):
            if seen[at] == KEY and seen[at + 1 : at + 3] == seen[asked + 1 : asked + 3]:
                return seen[min(at + len(seen) - asked, at + NEEDLE - 1)]
        return 0


def rows_of(model, lengths=(90,), depths=(0, 50, 100), samples=6):
    return list(score(lambda length: model, HAY, tuple(KINDS), lengths, depths, samples))


def test_a_reader_finds_every_needle():
    told = []
    rows = list(score(lambda _: Reader(), HAY, tuple(KINDS), (90,), (0, 100), 4, lambda *done: told.append(done)))
    assert [(row["kind"], row["depth"]) for row in rows] == [(kind, depth) for kind in KINDS for depth in (0, 100)]
    assert told == [(number, 8) for number in range(1, 9)]
    for row in rows:
        assert (row["accuracy"], row["correct"], row["total"], row["token_accuracy"]) == (1, 4, 4, 1)
        assert row["all_questions"] == row["rank"] == 1
        assert -0.1 < row["logprob"] < 0
    values = len(HAY.ranges["values"])
    assert {row["candidates"] for row in rows} == {values}
    assert rows[0]["chance"] == pytest.approx(1 / (values * (values - 1) * (values - 2)))
    assert [row["copy_chance"] for row in rows[::2]] == [None, 1 / 3, 1 / 3, 1 / 3]


def test_the_needle_that_is_scored_is_the_one_at_the_depth():
    rows = rows_of(Reader(sight=45))
    by_depth = {depth: [row for row in rows if row["depth"] == depth] for depth in (0, 50, 100)}
    assert all(row["accuracy"] == 0 for row in by_depth[0])
    assert all(row["accuracy"] == 1 for row in by_depth[100] if row["kind"] in ("single", "multi-key"))
    several = [row for row in by_depth[100] if row["kind"].startswith("multi-") and row["kind"] != "multi-key"]
    assert all(row["accuracy"] > row["all_questions"] for row in several)


def test_a_model_that_knows_nothing_ranks_the_answer_first_among_equals_and_never_gets_it():
    class Flat(Reader):
        def next(self, seen):
            return 0

    for row in rows_of(Flat(), depths=(50,)):
        assert row["accuracy"] == row["token_accuracy"] == 0
        assert row["logprob"] == pytest.approx(-ANSWER * torch.tensor([9.0] + [0.0] * (VOCAB - 1)).logsumexp(0).item())


def test_scores_do_not_depend_on_how_many_are_run_at_once(monkeypatch):
    model = Reader(sight=60)
    at_once = rows_of(model)
    monkeypatch.setattr("dmabench.tasks.needle_scores.FORWARD_TOKENS", {"cpu": 1, "cuda": 1})
    assert rows_of(model) == at_once


def test_summaries_are_means_of_the_kind_over_lengths():
    def row(kind, length, accuracy):
        return {"kind": kind, "test_len": length, "accuracy": accuracy}

    rows = [
        row("single", 64, 1.0),
        row("single", 64, 0.9),
        row("single", 128, EFFECTIVE),
        row("single", 256, 0.2),
        row("single", 512, 0.9),
        row("multi-key", 64, 0.5),
    ]
    found = summaries(rows, trained=128)
    assert [one["accuracy"] for one in found] == [one["accuracy"] for one in rows]
    within, beyond = (0.95 + EFFECTIVE) / 2, 0.55
    for one in found[:5]:
        assert (one["within"], one["beyond"]) == pytest.approx((within, beyond))
        assert one["beyond_over_within"] == pytest.approx(beyond / within)
        assert one["effective_length"] == 128
    assert (found[5]["within"], found[5]["beyond"], found[5]["beyond_over_within"]) == (0.5, None, None)
    assert found[5]["effective_length"] == 0
