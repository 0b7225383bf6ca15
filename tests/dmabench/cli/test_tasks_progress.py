"""What a terminal shows of a running task."""

import io

import pytest
from rich.console import Console

from dmabench.cli.tasks_progress import Pace, Shown, duration, told_of
from dmabench.tasks.task import Progress
from dmabench.trials.cells import blocks_of, make_trials


@pytest.fixture
def trials(toy):
    return make_trials(toy, blocks_of(toy, None, {"lr": "1e-3,3e-3"}, "cpu"))


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_two_lines_that_fit_the_terminal(toy, trials, columns):
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, color_system=None)
    with Shown(toy, trials, 1, console=console) as shown:
        told = shown.began(trials[-1])
        told(Progress("train", 250, 1000, loss=2.345, accuracy=0.5, tokens_per_s=12345.0))
        lines = _drawn(shown, columns)
    assert len(lines) == 2 and max(map(len, lines)) <= columns
    assert "1/6" in lines[0] and "dma window=16" in lines[0]
    assert "train" in lines[1] and "250/1000" in lines[1] and "loss 2.345" in lines[1]
    if columns >= 80:
        assert "acc 0.500 12.3k tok/s" in lines[1] and "lr=0.003" in lines[0]


def test_cells_that_run_at_once_have_a_line_each(toy, trials):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with Shown(toy, trials, 0, console=console, alone=False) as shown:
        told = [shown.began(trial) for trial in trials[:3]]
        told[2](Progress("train", 250, 1000, loss=2.345, accuracy=0.5, tokens_per_s=12345.0))
        lines = _drawn(shown, 80)
        assert len(lines) == 4 and max(map(len, lines)) <= 80
        assert "0/6" in lines[0] and "mha" in lines[1] and "starting" in lines[1]
        assert "train" in lines[3] and "acc 0.500" in lines[3] and "tok/s" not in lines[3]
        shown.began(trials[1])  # again, in the line that it had
        shown.ended(trials[0], [])
        lines = _drawn(shown, 80)
    assert len(lines) == 3 and "1/6" in lines[0]


def _drawn(shown, columns):
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(shown.bars.get_renderable())
    return console.file.getvalue().splitlines()


def test_nothing_is_shown_off_a_terminal(toy, trials):
    console = Console(file=io.StringIO())
    with Shown(toy, trials, 0, console=console) as shown:
        shown.began(trials[0])(Progress("train", 1, 10))
        shown.ended(trials[0], [])
    assert console.file.getvalue() == ""


def test_time_left_follows_the_pace_of_the_stage():
    pace = Pace()
    assert pace.left_s(Progress("train", 100, 1100), now=10.0) is None
    assert pace.left_s(Progress("train", 200, 1100), now=20.0) == pytest.approx(90)
    assert pace.left_s(Progress("score", 0, 10), now=21.0) is None
    assert pace.left_s(Progress("score", 5, 10), now=22.0) == pytest.approx(1)


def test_words():
    assert told_of(Progress("train", 1, 2), None) == ""
    assert told_of(Progress("train", 1, 2, loss=1.0, tokens_per_s=2e6), 65) == "loss 1.000 2M tok/s 1:05 left"
    assert [duration(seconds) for seconds in (0, 65, 3605)] == ["0:00", "1:05", "1:00:05"]
