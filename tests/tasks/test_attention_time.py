"""Stamps are set where attention begins and ends, and change nothing."""

from typing import Any

import pytest
import torch

from dmabench.tasks.attention_time import Stopwatch, attention_time
from dmabench.tasks.kinds import KINDS
from dmabench.tasks.labelled_loss import LabelledLoss
from dmabench.tasks.presets import model_config

BEGIN = ["begin", "end"]
BACK = ["backward begin", "backward end"]


def model_of(kind: str) -> Any:
    from dmabench.tasks.model import DmabenchForCausalLM

    torch.manual_seed(0)
    return DmabenchForCausalLM(model_config("tiny", kind)).train()


def gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    ids = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    LabelledLoss(model, "fp32")(ids, torch.arange(80), ids.flatten()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


class Ticks(Stopwatch):
    """A tick later each time it is asked."""

    ticks = 0

    def now(self) -> int:
        self.ticks += 1
        return self.ticks

    def ms(self, start: int, end: int) -> float:
        return end - start


@pytest.mark.parametrize("kind", KINDS)
def test_every_attention_is_stamped_in_both_directions(kind: str) -> None:
    model = model_of(kind)
    plain = gradients(model)
    with attention_time(model, Ticks("cpu")) as found:
        stamped = gradients(model)
    # Two layers: forward through the first and the second, backward through the second and the first.
    assert [list(call) for call in found.calls] == [BEGIN + BACK] * 2
    assert [list(call.values()) for call in found.calls] == [[1, 2, 7, 8], [3, 4, 5, 6]]
    assert found.ms() == 4
    assert all(map(torch.equal, plain, stamped))
    gradients(model)
    assert len(found.calls) == 2, "stamps end with the context"


def test_activations_that_are_recomputed_count_twice() -> None:
    model = model_of("mha")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with attention_time(model, Ticks("cpu")) as found:
        gradients(model)
    assert sorted(list(call) for call in found.calls) == sorted([BEGIN + BACK, BEGIN] * 2)
    assert found.ms() == 6


def test_seconds_of_a_cpu_are_milliseconds() -> None:
    watch = Stopwatch("cpu")
    start = watch.now()
    end = watch.now()
    assert end >= start
    assert watch.ms(1.0, 1.5) == 500
