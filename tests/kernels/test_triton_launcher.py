"""The launcher of Triton kernels: when it goes past Triton's own search, and with what. Launches are recorded."""

import pytest
import torch

from dmabench.kernels.triton_launcher import Launcher


class _Compiled:
    def __init__(self, calls):
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *arguments: self.calls.append(("compiled", grid, arguments))


class _Kernel:
    """Stands in for a function decorated with triton.jit; interpreted ones return nothing."""

    arg_names = ("x", "y", "n", "scale", "BLOCK", "FLAG")

    def __init__(self, interpreted=False):
        self.calls, self.interpreted = [], interpreted

    def __getitem__(self, grid):
        def run(*arguments, **named):
            self.calls.append(("searched", grid, arguments, named))
            return None if self.interpreted else _Compiled(self.calls)

        return run


NAMED = {"FLAG": True, "num_warps": 4, "BLOCK": 64}


@pytest.fixture
def launch():
    """launch(x, y, n, scale, variant) -> what the kernel, an attribute of it, was called with last"""
    kernel = _Kernel()
    launcher = Launcher(kernel)

    def call(x, y, n=5, scale=0.5, variant="a"):
        launcher(7, (x, y), (n, scale), variant, lambda: dict(NAMED))
        return kernel.calls[-1]

    call.launcher = launcher
    return call


def test_a_call_like_one_before_gets_addresses_numbers_and_constants_in_order(launch):
    x, y = torch.zeros(4), torch.zeros(4)
    assert launch(x, y) == ("searched", (7,), (x, y, 5, 0.5), NAMED)
    other = torch.zeros(4)
    assert launch(other, y) == ("compiled", (7, 1, 1), (other.data_ptr(), y.data_ptr(), 5, 0.5, 64, True))
    assert launch(x, None, variant="b")[0] == "searched"
    assert launch(x, None, variant="b") == ("compiled", (7, 1, 1), (x.data_ptr(), None, 5, 0.5, 64, True))


@pytest.mark.parametrize("change", [{"n": 6}, {"scale": 0.25}, {"variant": "b"}])
def test_another_variant_is_searched_for(launch, change):
    x = torch.zeros(4)
    launch(x, x)
    assert launch(x, x, **change)[0] == "searched"
    assert launch(x, x, **change)[0] == "compiled" and launch(x, x)[0] == "compiled"


def test_addresses_that_are_not_aligned_are_left_to_triton(launch):
    x = torch.zeros(8)
    for first, second in [(x[1:], x), (x, x[1:])]:
        for _ in range(2):
            assert launch(first, second)[0] == "searched"
    assert launch(x, x)[0] == "searched" and launch(x, x[4:])[0] == "compiled"


def test_keeps_no_more_than_some(launch, monkeypatch):
    monkeypatch.setattr("dmabench.kernels.triton_launcher._MOST_KEPT", 3)
    x = torch.zeros(4)
    for n in range(10):
        assert launch(x, x, n=n)[0] == "searched"
        assert len(launch.launcher._compiled) <= 3
    assert launch(x, x, n=9)[0] == "compiled"


def test_interpreted_kernels_are_always_called_whole():
    kernel, x = _Kernel(interpreted=True), torch.zeros(4)
    launcher = Launcher(kernel)
    for _ in range(2):
        launcher(1, (x, None), (5, 0.5), "a", lambda: NAMED)
    assert [call[0] for call in kernel.calls] == ["searched", "searched"]
