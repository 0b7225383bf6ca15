"""Sampling: when it stops and says why, that subjects take turns, and that a failure ends only its own."""

from itertools import count
from types import SimpleNamespace

import pytest

from dmabench.timing import rounds
from dmabench.timing.clock import CpuClock, make_clock, measured_roofs
from dmabench.timing.rounds import MOST_ROUNDS, Samples, interleave


class FakeSubject:
    """Takes no time; the clock below says how long it took."""

    def __init__(self, name: str, log: list[str], fail: bool = False):
        self.name, self.log, self.fail, self.readied = name, log, fail, 0

    def ready(self) -> None:
        self.readied += 1

    def release(self) -> None:
        self.readied -= 1

    def region(self) -> None:
        if self.fail:
            raise RuntimeError("broken")
        self.log.append(self.name)

    def parts(self) -> dict:
        return {"kernel_ms": lambda: None}


class FakeClock(CpuClock):
    def __init__(self, values):
        self.values = iter(values)

    def wall_ms(self, call) -> float:
        call()
        return next(self.values)


def _run(subjects, values, cap_s=1e-9):
    begun, failures = [], []
    samples = interleave(
        subjects, FakeClock(values), cap_s, 0, begun.append, lambda cell, error: failures.append((cell, str(error)))
    )
    return samples, begun, failures


def test_steady_samples_stop_early_and_say_so():
    samples, begun, _ = _run({"a": FakeSubject("a", [])}, iter(lambda: 1.0, None), cap_s=1e9)
    assert samples["a"].stopped == "steady" and begun


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    """A turn takes one sample, whatever the cap; a look at the time takes a microsecond, whatever the machine does."""
    one_turn = rounds._one_turn
    monkeypatch.setattr(rounds, "_one_turn", lambda subject, samples, clock, _: one_turn(subject, samples, clock, 0))
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=count(0.0, 1e-6).__next__))


def test_noise_goes_on_to_the_cap_and_says_so():
    noisy = (float(1 + (n * 7919 % 13)) * (1 + n) for n in range(10_000))
    samples, _, _ = _run({"a": FakeSubject("a", [])}, noisy, cap_s=1e-9)
    assert samples["a"].stopped == "cap"
    assert len(samples["a"].wall_ms) == 5  # the least, although the cap was used up at once


def test_an_endless_drift_ends_after_the_most_rounds():
    drift = (2.0 ** (n // 2) for n in range(10_000))
    samples, _, _ = _run({"a": FakeSubject("a", [])}, drift, cap_s=1e9)
    assert len(samples["a"].wall_ms) <= MOST_ROUNDS + 4


@pytest.mark.parametrize(("ms", "calls"), [(1.0, 3), (5000.0, 1)])
def test_slow_calls_are_warmed_up_once(ms, calls):
    """The fake takes no time, so its first turn is not known to be slow: the later ones are."""
    log: list[str] = []
    samples, _, _ = _run({"a": FakeSubject("a", log)}, iter(lambda: ms, None))
    turns = len(samples["a"].wall_ms)
    assert turns == 5 and len(log) == 3 + calls * (turns - 1)


def test_subjects_take_turns():
    log: list[str] = []
    subjects = {name: FakeSubject(name, log) for name in "abc"}
    samples, begun, _ = _run(subjects, iter(lambda: 1.0, None))
    assert all(one.turns == [1] * len(one.wall_ms) for one in samples.values())
    turns = [set(begun[n : n + 3]) for n in range(0, len(begun) - 2, 3)]
    assert turns and all(turn == set("abc") for turn in turns)
    assert all(subject.readied == 0 for subject in subjects.values())


def test_a_failure_ends_only_its_own_subject():
    subjects = {"good": FakeSubject("good", []), "bad": FakeSubject("bad", [], fail=True)}
    samples, _, failures = _run(subjects, iter(lambda: 1.0, None))
    assert set(samples) == {"good"}
    assert failures == [("bad", "broken")]
    assert subjects["bad"].readied == 0


def test_spread_is_judged_on_device_time_where_there_is_one():
    assert Samples(gpu_ms=[1.0], wall_ms=[2.0]).main == [1.0]
    assert Samples(wall_ms=[2.0]).main == [2.0]


def test_a_cpu_clock_measures_and_has_no_device_time():
    clock = make_clock("cpu")
    assert clock.gpu_ms(lambda: None) is None
    assert clock.wall_ms(lambda: sum(range(1000))) > 0


def test_roofs_are_measured_and_plausible():
    import torch

    roofs = measured_roofs("cpu", torch.float32)
    assert 1e-3 < roofs["roof_tflops"] < 100 and 0.1 < roofs["roof_gbs"] < 10_000
