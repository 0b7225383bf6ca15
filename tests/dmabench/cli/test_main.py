"""What the console script makes of a command that is interrupted."""

import os
import signal

import pytest

from dmabench.cli import main


@pytest.fixture
def run(monkeypatch):
    """run(command): its exit code, the handler of Ctrl-C as it was put back."""

    def call(command):
        monkeypatch.setattr(main, "app", lambda words: command())
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(SystemExit) as ended:
                main.run()
        finally:
            signal.signal(signal.SIGINT, before)
        return ended.value.code

    return call


def _press():
    os.kill(os.getpid(), signal.SIGINT)


def _press_while_a_library_is_imported():
    try:
        _press()
    except KeyboardInterrupt as error:
        raise RecursionError("maximum recursion depth exceeded") from error


def _fail():
    raise RecursionError("maximum recursion depth exceeded")


@pytest.mark.parametrize("command", [_press, _press_while_a_library_is_imported])
def test_ctrl_c_is_an_interruption_whatever_a_library_makes_of_it(run, capsys, command):
    assert run(command) == 130
    assert capsys.readouterr().err == "dmabench: interrupted\n"


def test_the_same_error_without_it_is_a_bug(run, capsys):
    assert run(_fail) == 1
    assert "This is a bug" in capsys.readouterr().err
