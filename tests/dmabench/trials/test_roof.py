"""Estimates of time: what was measured for small models, in proportion, and operations for large ones."""

import pytest

from dmabench.tasks.task import Cost
from dmabench.trials.cells import Trial
from dmabench.trials.roof import CELL_S, STEP_S, TUNING_S, Roof, roof_of

ROOF = Roof(tflops=2.0, share=0.5, step_s=0.02, about="")
SMALL = {"steps": 1000, "layers": 2, "d_model": 128}


@pytest.mark.parametrize(
    ("flops", "steps", "seconds"),
    [(3e12, 10, 3.0), (3e12, 1000, 20.0), (3e12, None, 3.0)],
)
def test_a_cell_takes_its_operations_or_its_steps(flops, steps, seconds):
    assert ROOF.seconds(Trial("toy", {"steps": steps}, None, Cost(1, flops, 1))) == pytest.approx(seconds)


def test_steps_are_as_long_as_their_tokens_layers_and_width():
    tokens = 1000 * 32768
    assert ROOF.seconds(Trial("toy", SMALL, None, Cost(tokens, 0, 1))) == pytest.approx(20)
    assert ROOF.seconds(Trial("toy", SMALL, None, Cost(tokens, 0, 1, scored=3 * tokens))) == pytest.approx(40)
    wide = SMALL | {"layers": 4, "d_model": 256}
    assert ROOF.seconds(Trial("toy", wide, None, Cost(tokens // 2, 0, 1))) == pytest.approx(40)


def test_a_gpu_tells_where_its_times_come_from_and_tunes_once():
    roof = roof_of("cuda")
    assert (roof.step_s, roof.cell_s) == (STEP_S, CELL_S)
    assert "7.5 ms for a step of 32k tokens of 2 layers of width 128, as measured on an H100" in roof.about
    cells = [Trial("toy", {"attention": kind}, None, Cost(1, 0, 1)) for kind in ("mha", "nsa", "nsa")]
    assert roof.once(cells) == TUNING_S["nsa"] and roof.once(cells[:1]) == 0
    assert roof_of("cpu").once(cells) == 0


def test_a_refused_cell_takes_nothing():
    assert ROOF.seconds(Trial("toy", {"steps": 1000}, "too small", Cost(0, 0, 0))) == 0


def test_a_cpu_is_measured_and_says_so():
    roof = roof_of("cpu")
    assert 1e-3 < roof.tflops < 100 and roof.step_s == 0
    assert "operations at 25% of the" in roof.about and "an fp32 matrix product reaches here now" in roof.about
