"""What is inside a timed region and what is not."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import dmabench.workload.inputs
from dmabench.kernels import registry
from dmabench.timing.further_subjects import AnySubject, make_subject
from dmabench.workload.cells import Cell, Shape
from dmabench.workload.inputs import Inputs


def _subject(pass_: str, name: str = "dma/reference") -> AnySubject:
    shape = Shape(pass_, "kernel", 50, 1, 4, 2, 16, "fp32", 0, "cpu")
    function, backend = name.split("/")
    window = {"dense": None, "mla": None, "nsa": 16}.get(function, 8)
    cell = Cell(function, backend, shape, window, "iid" if function == "dma" else None)
    return make_subject(registry.get(name), cell, Inputs(shape))


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


class StandInForCuda:
    """Streams and graphs that only note what happens: the stream of each forward, what is captured, the replays."""

    def __init__(self, monkeypatch):
        self.now, self.replays, self.captured_on = "main", 0, None
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self.named("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.named(self.now))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))

    def named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: None)

    def replay(self):
        self.replays += 1

    @contextmanager
    def on(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before

    @contextmanager
    def capture(self, graph, stream):
        self.captured_on = stream.name
        with self.on(stream):
            yield


@pytest.mark.parametrize("name", ["dma/reference", "dense/sdpa-flash", "mla/expanded", "nsa/reference"])
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_a_graph_is_captured_on_the_stream_of_the_forward_which_it_keeps(monkeypatch, pass_, name):
    cuda = StandInForCuda(monkeypatch)
    subject = _subject(pass_, name)
    forward, streams = subject._forward, []
    monkeypatch.setattr(subject, "_forward", lambda *given: (streams.append(cuda.now), forward(*given))[1])
    subject.capture()
    assert cuda.captured_on == "side" and set(streams) <= {"side"} and (pass_ == "fwd") == (not streams)
    streams.clear()
    kept = subject._state
    subject.ready()
    subject.region()
    subject.release()
    assert not streams and cuda.replays == 2 and subject._state is kept and (kept is not None) == (pass_ == "bwd")


@pytest.mark.parametrize("wrong", [lambda x: 1.1 * x, lambda x: x / 0])
def test_a_graph_that_computes_something_else_is_refused(monkeypatch, wrong):
    cuda = StandInForCuda(monkeypatch)
    subject = _subject("bwd")
    call = subject.call_region
    monkeypatch.setattr(
        subject, "call_region", lambda: [wrong(x) if cuda.captured_on and x is not None else x for x in call()]
    )
    with pytest.raises(RuntimeError, match="gives another result"):
        subject.capture()
