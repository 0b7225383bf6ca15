"""Processes that share a device, and one that has it to itself."""

import json
import subprocess
import sys
import time

import pytest

from dmabench.trials.turnstile import Turnstile

BUSY = """
import json, sys, time
from pathlib import Path
from dmabench.trials.turnstile import Turnstile

folder, times = Path(sys.argv[1]), int(sys.argv[2])
turnstile = Turnstile(folder, lambda: None, lambda: None)
work, alone = [], []
with turnstile.inside():
    print("in", flush=True)
    sys.stdin.readline()
    for turn in range(times):
        for _ in range(10):
            start = time.monotonic()
            time.sleep(0.002)
            work.append((start, time.monotonic()))
            turnstile.give_way()
        with turnstile.alone():
            start = time.monotonic()
            time.sleep(0.02)
            alone.append((start, time.monotonic()))
print(json.dumps([work, alone]))
"""


def start(folder, *words, program=BUSY):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program, str(folder), *map(str, words)], **pipes)


def apart(one, other):
    return one[1] <= other[0] or other[1] <= one[0]


def test_nobody_works_while_one_is_alone_and_all_come_to_an_end(tmp_path):
    running = [start(tmp_path, 4) for _ in range(3)]
    for process in running:  # all are in before any begins
        assert process.stdout.readline() == "in\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    work, alone = zip(
        *(json.loads(process.communicate(timeout=110)[0].splitlines()[-1]) for process in running), strict=True
    )
    assert [len(mine) for mine in alone] == [4, 4, 4]
    for number, mine in enumerate(alone):
        for interval in mine:
            for other in range(len(running)):
                if other != number:
                    assert all(apart(interval, theirs) for theirs in (*work[other], *alone[other]))


def test_the_device_is_settled_before_others_have_it(tmp_path):
    """A process holds the turnstile; this one gives way, and goes on when that one has died."""
    holder = start(tmp_path, program=HOLDER)
    assert holder.stdout.readline() == "held\n"
    happened = []

    def alive():
        happened.append("alive")
        holder.kill()  # it lets go of nothing itself
        holder.wait()

    turnstile = Turnstile(tmp_path, alive, lambda: happened.append("settled"))
    turnstile.give_way()
    assert happened[:2] == ["settled", "alive"]
    before = len(happened)
    turnstile.give_way()
    assert len(happened) == before  # nobody is there: nothing is waited for


HOLDER = """
import sys, time, fcntl
from pathlib import Path
file = (Path(sys.argv[1]) / "turnstile").open("ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_what_fails_alone_leaves_the_others_their_turn(tmp_path):
    one, other = (Turnstile(tmp_path, lambda: pytest.fail("it waits"), lambda: None) for _ in range(2))
    with one.inside():
        with pytest.raises(MemoryError), one.alone():
            raise MemoryError
        with other.inside():
            other.give_way()
            one.give_way()
    with other.inside(), other.alone():
        began = time.monotonic()
    assert began
