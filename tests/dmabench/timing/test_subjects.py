"""What is inside a timed region and what is not."""

import pytest
import torch

import dmabench.workload.inputs
from dmabench.kernels import registry
from dmabench.timing.subjects import Call, Subject
from dmabench.workload.cells import Cell, Shape
from dmabench.workload.inputs import Inputs


def _subject(pass_: str, name: str = "dma/reference") -> Subject:
    shape = Shape(pass_, "kernel", 50, 1, 4, 2, 16, "fp32", 0, "cpu")
    function, backend = name.split("/")
    cell = Cell(function, backend, shape, None if function == "dense" else 8, "iid" if function == "dma" else None)
    inputs = Inputs(shape)
    return Subject(Call(registry.get(name), cell, inputs.scale), inputs)


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Windows of the plans that were made."""
    windows: list[int] = []
    make_plan = dmabench.workload.inputs.make_plan

    def counting(delta, window, **options):
        windows.append(window)
        return make_plan(delta, window, **options)

    monkeypatch.setattr(dmabench.workload.inputs, "make_plan", counting)
    return windows


@pytest.mark.parametrize(("pass_", "plans"), [("fwd", 1), ("bwd", 0), ("fwd+bwd", 1)])
def test_a_forward_makes_its_plan_inside_the_region_and_a_backward_makes_none(made, pass_, plans):
    subject = _subject(pass_)
    subject.ready()
    made.clear()
    subject.region()
    subject.region()
    assert len(made) == 2 * plans


def test_the_kernel_part_reuses_a_plan(made):
    parts = _subject("fwd").parts()
    assert set(parts) == {"importance_ms", "plan_ms", "kernel_ms"}
    made.clear()
    parts["kernel_ms"]()
    parts["importance_ms"]()
    assert made == []
    parts["plan_ms"]()
    assert made == [8]


def test_the_parts_give_the_region_s_output():
    subject = _subject("fwd")
    assert torch.equal(subject.parts()["kernel_ms"](), subject.region())


def test_a_backward_region_gives_every_gradient():
    subject = _subject("bwd")
    subject.ready()
    assert [tuple(grad.shape) for grad in subject.region()] == [
        (1, 4, 50, 16),
        (1, 2, 50, 16),
        (1, 2, 50, 16),
        (1, 2, 50),
    ]


def test_forward_and_backward_pays_for_the_importance_s_gradients_too():
    gradients = _subject("fwd+bwd").region()
    assert [tuple(grad.shape) for grad in gradients[4:]] == [(32, 2), (2,)]
    assert all(bool(grad.abs().sum() > 0) for grad in gradients)


@pytest.mark.parametrize("name", ["dense/sdpa-math", "dense/sdpa-flash"])
def test_other_functions_have_no_parts_and_no_delta(name):
    subject = _subject("bwd", name)
    subject.ready()
    assert len(subject.region()) == 3
    assert subject.parts() == {}
