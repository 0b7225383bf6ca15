"""Recipes: the learning rate over the steps, what is decayed, what differs."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.recipe import Recipe, autocast, make_optimizer
from dmabench.tasks.task_model import build_model


@given(st.integers(1, 300), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_learning_rate_rises_then_falls(steps: int, warmup: float) -> None:
    recipe = Recipe(steps, 1, 2e-3, warmup=warmup)
    rates = [recipe.lr_at(step) for step in range(steps)]
    rise = round(warmup * steps)
    assert rates[:rise] == sorted(rates[:rise]) and rates[rise:] == sorted(rates[rise:], reverse=True)
    assert all(0 < rate <= 2e-3 for rate in rates)
    assert max(rates) == pytest.approx(2e-3)


def test_the_fall_is_half_a_cosine() -> None:
    recipe = Recipe(110, 1, 1.0, warmup=10 / 110)
    assert [recipe.lr_at(step) for step in (4, 9, 10, 60)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


@pytest.mark.parametrize("attention", ["dma", "mla"])
def test_matrices_alone_are_decayed(attention: str) -> None:
    model = build_model({"attention": attention, "d_model": 16, "short_conv": 3, "window": 4}, 32, 16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = make_optimizer(model, Recipe(1, 1, 1e-3, weight_decay=0.2)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    found = {names[id(parameter)] for parameter in others["params"]}
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - found
    assert "model.embed_tokens.weight" in found
    assert {name for name in names.values() if name.endswith(("norm.weight", ".A"))} <= found
    assert not any("proj" in name or "W_dt" in name for name in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"warmup": 1.5}, "warmup is a share"),
        ({"precision": "fp16"}, "bf16 or fp32"),
    ],
)
def test_recipes_that_train_nothing_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(Recipe(1, 1, 1e-3), **change)


def test_differences_are_named_both_ways() -> None:
    recipe = Recipe(10, 4, 1e-3)
    assert recipe.differences(asdict(recipe)) == []
    theirs = {**asdict(recipe), "lr": 3e-3, "momentum": 0.9}
    del theirs["clip"]
    assert recipe.differences(theirs) == ["lr 0.003, not 0.001", "clip None, not 1.0", "momentum 0.9, not None"]


def test_half_precision_is_for_cuda_alone() -> None:
    with autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
