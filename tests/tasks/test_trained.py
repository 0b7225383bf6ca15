"""What is kept of validations: in checkpoints, older ones too, and in rows."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from dmabench.tasks.trained import Past, Trained, Validation, held_out_curve

LOOKS = [Validation(2, 0.25, 200, 3.0), Validation(4, 0.5, 400, 2.0)]


def trained(**changes):
    made = Trained(SimpleNamespace(), 4, 400, 2.1, 1.0, 400.0, None, "finished", [2.0] * 4, LOOKS)
    return replace(made, **changes)


def test_what_a_checkpoint_holds_is_read_again(tmp_path):
    past = Past(step=4, tokens=400, validations=LOOKS)
    torch.save(past.as_dict(), tmp_path / "past.pt")
    assert Past.of(torch.load(tmp_path / "past.pt", weights_only=True)) == past


def test_older_checkpoints_hold_steps_and_accuracy_alone():
    older = {**asdict(Past(step=4)), "validations": [(2, 0.25), [4, 0.5]]}
    assert Past.of(older).validations == [Validation(2, 0.25), Validation(4, 0.5)]
    assert Past.of(older).validations[0].loss is None


def test_a_curve_goes_on_where_the_stage_before_ended():
    later = trained(validations=[Validation(1, 0.6, 50, 1.23456789)], tokens=60)
    assert held_out_curve([trained(), later]) == {"curve_tokens": [200, 400, 450], "curve_loss": [3.0, 2.0, 1.23457]}


@pytest.mark.parametrize("looks", [[], [Validation(2, 0.25), Validation(4, 0.5)]])
def test_no_curve_of_validations_without_a_loss(looks):
    assert held_out_curve([trained(validations=looks)]) == {"curve_tokens": [], "curve_loss": []}
