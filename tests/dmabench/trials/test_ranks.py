import signal
import time

import pytest

from dmabench.trials.ranks import Ranks, here


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = here()
    assert ranks == Ranks(0, 1, 0) and ranks.first and ranks.device("cuda:1") == "cuda:1"
    assert ranks.from_first(lambda: [1, 2], "cpu") == [1, 2]
    with pytest.raises(ZeroDivisionError):
        ranks.from_first(lambda: 1 / 0, "cpu")


def test_each_of_several_has_its_own_gpu(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    ranks = here()
    assert ranks == Ranks(3, 4, 1) and not ranks.first
    assert ranks.device("cuda") == "cuda:1" and ranks.device("cpu") == "cpu"


def test_the_first_says_why_and_the_others_wait_to_be_ended(monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Ranks(0, 2, 0).wait_for_first()
        assert waited == [] and signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        Ranks(1, 2, 1).wait_for_first(7)
        assert waited == [7] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
