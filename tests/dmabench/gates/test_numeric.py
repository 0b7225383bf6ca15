"""How far off a value may be: the floors below which no error counts."""

import pytest
import torch

from dmabench.gates.numeric import Floors, budgets, judge

BF16 = torch.bfloat16


def _judged(name: str, off: torch.Tensor, floors: Floors) -> str | None:
    """The verdict on values that are all noise, `off` apart from an exact zero."""
    exact = {name: torch.zeros_like(off)}
    return judge({name: off}, exact, budgets(exact, exact, BF16, 64, floors), BF16, 64, floors).wrong


@pytest.mark.parametrize(("times", "wrong"), [(1.9, False), (2.1, True)])
def test_dq_may_be_off_by_what_rounding_the_output_costs(times, wrong):
    """A query with nearly all weight on one key: dout v - dout out is no more exact than out is."""
    rounding = torch.tensor([[[0.5, 0.01]]])
    off = times * rounding[..., None] * torch.ones(64) / 8
    assert bool(_judged("dq", off, Floors(rounding=rounding))) == wrong
    assert _judged("dq", off, Floors())  # it is the floor that lets it pass
    assert _judged("dk", off, Floors(rounding=rounding))


@pytest.mark.parametrize(("times", "wrong"), [(1.9, False), (2.1, True)])
def test_ddelta_may_be_off_by_what_rounding_the_outputs_of_its_rows_costs(times, wrong):
    left = torch.tensor([[[0.5, 0.01]]])
    assert bool(_judged("ddelta", times * left, Floors(left=left))) == wrong
    assert _judged("ddelta", times * left, Floors())
    assert _judged("dk", (times * left)[..., None] * torch.ones(64), Floors(left=left))


@pytest.mark.parametrize("name", ["dk", "ddelta"])
def test_what_is_left_of_many_differences_adds_up_like_a_random_walk(name):
    summed = torch.tensor([[[1, 10000]]])
    one = 8.0 * 2**-16  # of one difference: a part of what is subtracted, about sqrt(D)
    for times, wrong in ((0.9, False), (1.1, True)):
        off = times * one * summed.sqrt()
        off = off if name == "ddelta" else off[..., None] * torch.ones(64) / 8
        assert bool(_judged(name, off, Floors(summed=summed))) == wrong
        assert _judged(name, off, Floors())


def test_the_floors_hide_nothing_where_gradients_do_not_cancel():
    exact = {"dk": torch.ones(1, 1, 2, 64)}
    floors = Floors(summed=torch.tensor([[[1, 10000]]]), left=torch.tensor([[[1e-3, 2e-3]]]))
    exact |= {"ddelta": torch.ones(1, 1, 2)}
    for name, right in exact.items():
        off, alone = {name: right * 1.2}, {name: right}
        assert judge(off, alone, budgets(alone, alone, BF16, 64, floors), BF16, 64, floors).wrong
