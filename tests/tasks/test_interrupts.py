"""Signals: the first is noted, the second ends at once, and handlers come back."""

import os
import signal
import threading

import pytest

from dmabench.tasks.interrupts import SIGNALS, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_ends(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with Interrupts() as interrupts:
        assert not interrupts.caught
        os.kill(os.getpid(), number)
        assert interrupts.caught
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_in_another_thread_nothing_is_caught_and_nothing_breaks() -> None:
    found: list[bool] = []

    def work() -> None:
        with Interrupts() as interrupts:
            found.append(interrupts.caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
