"""Predictions at labels against full logits, counts, candidates."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.scoring import NOTHING, Predictions, Score, labelled, predict, total


def some_labels(ids: torch.Tensor, share: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.where(torch.rand(ids.shape, generator=generator) < share, ids.flip(1), -100)


def made(example: list[int], correct: list[bool]) -> Predictions:
    """Labels of 7, each predicted or missed."""
    n = len(example)
    target = torch.full((n,), 7)
    predicted = torch.tensor([7 if right else 8 for right in correct], dtype=torch.long)
    logprob = torch.full((n,), -0.25)
    return Predictions(torch.tensor(example, dtype=torch.long), torch.arange(n), target, predicted, logprob, target)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_predictions_are_those_of_the_whole_logits(small: SimpleNamespace, batch: int) -> None:
    model = small.model("mha")
    ids = small.tokens(7, 20)
    labels = some_labels(ids)
    found = predict(model, ids, labels, batch=batch)
    logits = model(input_ids=ids).logits.float().detach()
    assert torch.equal(torch.stack([found.example, found.position], 1), (labels != -100).nonzero())
    chosen = logits[found.example, found.position]
    assert torch.equal(found.target, labels[found.example, found.position])
    assert torch.equal(found.predicted, chosen.argmax(-1))
    logprob = chosen.log_softmax(-1).gather(1, found.target[:, None])[:, 0]
    torch.testing.assert_close(found.logprob, logprob)
    order = chosen.argsort(-1, descending=True)
    assert torch.equal(found.rank, (order == found.target[:, None]).nonzero()[:, 1])
    assert torch.equal(found.correct, found.rank == 0)


def test_nothing_is_shifted_and_the_future_does_not_matter(small: SimpleNamespace) -> None:
    model = small.model("dma")
    ids = small.tokens(2, 20)
    labels = torch.full_like(ids, -100)
    labels[:, 9] = 5
    later = ids.clone()
    later[:, 10:] = 1
    torch.testing.assert_close(predict(model, ids, labels).logprob, predict(model, later, labels).logprob)
    itself = ids.clone()
    itself[:, 9] = 1
    assert not torch.allclose(predict(model, ids, labels).logprob, predict(model, itself, labels).logprob)


def test_ranks_are_among_the_candidates(small: SimpleNamespace) -> None:
    model = small.model("mha")
    ids = small.tokens(3, 20)
    labels = torch.full_like(ids, -100)
    labels[:, [4, 11]] = torch.tensor([[3, 9], [9, 20], [20, 3]])
    shared = torch.tensor([3, 9, 20])
    logits = model(input_ids=ids).logits.float().detach()
    found = predict(model, ids, labels, batch=2, candidates=shared)
    for number in range(len(found.target)):
        row = logits[found.example[number], found.position[number]]
        assert found.rank[number] == sum(row[token] > row[found.target[number]] for token in shared)
    own = torch.stack([shared, shared.flip(0), torch.tensor([20, 3, 3])])
    each = predict(model, ids, labels, batch=2, candidates=own)
    assert torch.equal(each.rank[:4], found.rank[:4])


def test_scoring_leaves_the_model_as_it_was(small: SimpleNamespace) -> None:
    model = small.model("mha").train()
    ids = small.tokens(2, 8)
    found = predict(model, ids, some_labels(ids))
    assert model.training and not found.logprob.requires_grad


def test_an_example_is_exact_if_all_its_labels_are_right() -> None:
    found = made([0, 0, 2, 2, 2, 5], [True, True, True, False, True, True])
    examples, exact = found.exact()
    assert examples.tolist() == [0, 2, 5] and exact.tolist() == [True, False, True]
    score = found.score()
    assert score == Score(5, 6, 2, 3, -1.5)
    assert (score.accuracy, score.exact_match, score.loss) == (5 / 6, 2 / 3, 0.25)
    part = found.score(found.example == 2)
    assert part == Score(2, 3, 0, 1, -0.75)


def test_no_labels_make_a_score_of_nothing(small: SimpleNamespace) -> None:
    ids = small.tokens(2, 8)
    score = predict(small.model("mha"), ids, torch.full_like(ids, -100)).score()
    assert score == NOTHING
    assert (score.accuracy, score.exact_match, score.loss) == (0.0, 0.0, 0.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12), st.integers(0, 5))
def test_scores_of_batches_add_up(labels: list[tuple[int, bool]], cut: int) -> None:
    labels.sort(key=lambda one: one[0])
    halves = [[one for one in labels if one[0] < cut], [one for one in labels if one[0] >= cut]]
    parts = [made([e for e, _ in half], [c for _, c in half]).score() for half in halves]
    assert total(parts) == made([e for e, _ in labels], [c for _, c in labels]).score()


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_labelled_finds_every_label(rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (rows, length), generator=generator)
    labels[labels < 0] = -100
    index, targets = labelled(labels)
    rebuilt = torch.full((rows * length,), -100)
    rebuilt[index] = targets
    assert torch.equal(rebuilt.view(rows, length), labels) and len(index) == (labels != -100).sum()
