"""Choosing among candidates: checked against the default, timed in turns, with a clock that knows the times."""

import io
from dataclasses import replace

import pytest
import torch

from dmabench.kernels.dma_triton import ahead, configs, ops
from dmabench.kernels.dma_triton.ahead import Taken
from dmabench.kernels.dma_triton.configs import Configs
from dmabench.kernels.dma_triton.tuned import Config
from dmabench.tables.tuning import as_row, drawn
from dmabench.timing import tuning
from dmabench.timing.clock import CpuClock
from dmabench.timing.tuning import DROPPED, READY, TIMED, WRONG, Candidate, measure, winners

BASE = configs.choose(128, torch.bfloat16, configs.HOPPER)
QUICK, SLOW, NEAR = Config(64, 64, 4, 2), Config(64, 32, 4, 2), Config(64, 16, 4, 2)
TIMES = {BASE.forward: 10.0, QUICK: 5.0, SLOW: 20.0, NEAR: 9.95}


class KnownClock(CpuClock):
    """Runs the call, and tells the time of the configuration that was in force in it."""

    def __init__(self, work):
        self.work = work

    def wall_ms(self, call):
        call()
        return TIMES[self.work.seen.forward]


class Work:
    """Outputs of a forward: the same for every configuration but those in `wrong`."""

    def __init__(self, wrong=(), fails=()):
        self.wrong, self.fails, self.seen = wrong, fails, None

    def __call__(self, kernel):
        self.seen = configs.for_call(128, torch.bfloat16, torch.device("cpu"), 1)
        if self.seen.forward in self.fails:
            raise RuntimeError("out of resource: shared memory\nand more")
        out = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(0))
        if self.seen.forward in self.wrong:
            out[0, 1, 3] *= 1.5
        lse = torch.tensor([[0.5, float("-inf")]])
        return {"out": out.bfloat16(), "lse": lse}


def run(work, *others, **more):
    every = [Candidate("forward", BASE.forward, is_default=True), *(Candidate("forward", one) for one in others)]
    return measure(work, BASE, every, KnownClock(work), 0.01, torch.bfloat16, 128, **more)


def test_the_fastest_that_is_right_wins():
    told = []
    found = run(Work(), SLOW, QUICK, told=told.append)
    assert [(one.status, one.ms) for one in found] == [(TIMED, 10.0), (TIMED, 20.0), (TIMED, 5.0)]
    assert winners(found)["forward"].config == QUICK
    assert told[0].startswith("forward 128x64, 8 warps, 3 stages: ") and len(told) == 3


def test_a_wrong_one_is_not_timed():
    found = run(Work(wrong=[QUICK]), QUICK)
    assert found[1].status == WRONG and found[1].ms is None and "out differs from the default's by" in found[1].why
    assert winners(found)["forward"].is_default


def test_a_failing_one_is_dropped_with_its_reason():
    found = run(Work(fails=[QUICK]), QUICK, SLOW)
    assert (found[1].status, found[1].why) == (DROPPED, "RuntimeError: out of resource: shared memory")
    assert found[2].status == TIMED
    assert winners(run(Work(fails=[BASE.forward]), QUICK)) == {}


def test_less_than_one_percent_is_noise():
    assert winners(run(Work(), NEAR))["forward"].is_default


def test_what_was_dropped_before_is_not_run():
    work = Work(fails=[QUICK])
    dropped = Candidate("forward", QUICK, status=DROPPED, why="spills: 3")
    default = Candidate("forward", BASE.forward, is_default=True)
    found = measure(work, BASE, [default, dropped], KnownClock(work), 0.01, torch.bfloat16, 128)
    assert found[1] == dropped and found[0].status == TIMED


@pytest.mark.parametrize("kernel", ["queries", "keys"])
def test_one_kernel_of_the_backward_is_changed_at_a_time(kernel):
    seen = []

    def work(name):
        assert name == kernel
        seen.append(configs.for_call(128, torch.bfloat16, torch.device("cpu"), 1))
        return {"dq": torch.ones(1, 1, 2, 4)}

    one = [Candidate(kernel, getattr(BASE, kernel), is_default=True), Candidate(kernel, QUICK)]
    measure(work, BASE, one, CpuClock(), 0.01, torch.bfloat16, 128)
    assert set(seen) == {BASE, replace(BASE, **{kernel: QUICK})}


def test_differences_in_the_order_of_sums_pass_and_others_do_not():
    x = {"out": torch.randn(1, 1, 16, 64, generator=torch.Generator().manual_seed(1))}
    assert tuning.differs({"out": x["out"].bfloat16().float()}, x, torch.bfloat16, 64) is None
    assert tuning.differs({"out": torch.full_like(x["out"], float("nan"))}, x, torch.bfloat16, 64)
    assert "float16" in tuning.differs({"out": x["out"].half()}, x, torch.bfloat16, 64)
    lse = {"lse": torch.tensor([[1.0, float("-inf")]])}
    assert tuning.differs(lse, lse, torch.bfloat16, 64) is None
    assert tuning.differs({"lse": torch.zeros(1, 2) + 9}, lse, torch.bfloat16, 64)


TAKEN = Taken(registers=200, stack=0, shared=90 << 10, spills=0, serialised=False)


@pytest.mark.parametrize(
    ("taken", "status", "why"),
    [
        (TAKEN, READY, ""),
        (replace(TAKEN, shared=228 << 10), DROPPED, "does not fit: 228 KiB of shared memory, a block may take 227"),
        (replace(TAKEN, spills=4), DROPPED, "spills: 4 accesses of local memory in its loops"),
        (RuntimeError("no\nway"), DROPPED, "does not compile: no"),
    ],
    ids=["fits", "too large", "spills", "does not compile"],
)
def test_candidates_that_spill_or_do_not_fit_are_dropped_before_they_run(monkeypatch, taken, status, why):
    def compile_ahead(*given):
        assert given == ("forward", QUICK, 128, torch.bfloat16, 90)
        if isinstance(taken, Exception):
            raise taken

    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    monkeypatch.setattr(ahead, "taken", lambda compiled: taken)
    found = tuning.look_ahead(Candidate("forward", QUICK), 128, torch.bfloat16, 90, configs.HOPPER)
    assert (found.status, found.why) == (status, why)
    if not isinstance(taken, Exception):
        default = tuning.look_ahead(
            Candidate("forward", QUICK, is_default=True), 128, torch.bfloat16, 90, configs.HOPPER
        )
        assert (default.status, default.why, default.taken) == (READY, why, taken)


def test_the_table_and_the_rows_say_what_each_takes(monkeypatch):
    from rich.console import Console

    found = [replace(one, taken=TAKEN) for one in run(Work(wrong=[SLOW]), QUICK, SLOW)]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(drawn(found))
    text = console.export_text()
    assert "winner" in text and "0.500" in text and "forward 64x32, 4 warps, 2 stages: out differs" in text
    row = as_row(found[1])
    assert row["status"] == "timed" and row["ms"] == 5.0 and row["registers"] == 200 and row["block_m"] == 64


def test_the_work_gives_the_passes_what_a_call_would(monkeypatch):
    """The operators are replaced: the kernels need a card, or an interpreter in a process of its own."""
    from dmabench.workload.cells import Shape
    from dmabench.workload.inputs import Inputs

    given = {}

    def forward(q, k, v, delta, *rest):
        given["forward"] = rest
        return q, q[..., 0].float(), q[..., 0].float()

    def backward(dout, q, k, v, delta, *rest):
        given["backward"] = (dout, rest)
        return q, k, v, delta

    monkeypatch.setattr(ops, "forward", forward)
    monkeypatch.setattr(ops, "backward", backward)
    shape = Shape("fwd+bwd", "kernel", 512, 1, 4, 2, 16, "fp32", 0, "cpu")
    work = tuning.Work(Inputs(shape), "iid", 64)
    assert set(work("forward")) == {"out", "lse"} and set(work("keys")) == {"dq", "dk", "dv", "ddelta"}
    *structures, scale = given["forward"]
    assert scale == 0.25 and len(structures) == 11 and structures[5] is None  # no order: no backward follows
    dout, (*structures, out, relative_lse, scale) = given["backward"]
    assert (
        structures[5] is not None
        and structures[10] is None
        and out.shape == dout.shape
        and relative_lse.shape == (1, 4, 512)
    )
    base = configs.choose(16, torch.float32, configs.HOPPER)
    with configs.forced(replace(base, keys=Config(64, 128, 4, 2, even=True))):
        work("keys")
    dout, (*structures, out, relative_lse, scale) = given["backward"]
    assert structures[10].shape == (2 * 512 // 128,)  # the steps of a configuration are of its own tiles


def test_configs_have_the_fields_that_are_tuned():
    from dmabench.kernels.dma_triton.tuned import KERNELS

    assert (*KERNELS, "in_order") == tuple(Configs.__dataclass_fields__) and tuple(ahead._KERNEL) == KERNELS
