"""Checkpoint files: whole or not at all, and everything comes back."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmabench.tasks import checkpoint
from dmabench.tasks.recipe import Recipe, make_optimizer
from dmabench.tasks.task_model import build_model

CPU = torch.device("cpu")
SETTINGS = {"attention": "dma", "d_model": 16, "window": 4}


def trained(seed: int, steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = build_model({**SETTINGS, "seed": seed}, 32, 16)
    optimizer = make_optimizer(model, Recipe(1, 1, 1e-2))
    for step in range(steps):
        ids = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def test_weights_and_optimizer_come_back_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1, steps=3)
    checkpoint.save(tmp_path, model, optimizer, {"past": 3})
    held = checkpoint.read(tmp_path)
    assert held is not None and held["rest"] == {"past": 3}
    other, fresh = trained(seed=2, steps=0)
    checkpoint.restore(held, other, fresh)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert moments(optimizer)
    for one, two in zip(moments(optimizer), moments(fresh), strict=True):
        assert torch.equal(one, two)
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_a_write_that_breaks_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained(seed=1, steps=1)
    checkpoint.save(tmp_path, model, optimizer, {"past": 1})

    def breaks_off(held: dict[str, Any], file: Any) -> None:
        file.write(b"half a checkp")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, model, optimizer, {"past": 2})
    held = checkpoint.read(tmp_path)
    assert held is not None and held["rest"] == {"past": 1}


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1, steps=1)
    checkpoint.save(tmp_path / "folder", model, optimizer, {}, writes=False)
    assert checkpoint.read(tmp_path / "folder") is None and not list(tmp_path.iterdir())


def draws() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(()))


def test_every_global_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.standard_normal()  # both keep a second number for the next call
    torch.save(checkpoint.random_state(CPU), tmp_path / "state.pt")
    expected = [draws() for _ in range(3)]
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    checkpoint.set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert [draws() for _ in range(3)] == expected
