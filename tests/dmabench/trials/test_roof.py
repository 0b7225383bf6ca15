import pytest

from dmabench.tasks.task import Cost
from dmabench.trials.cells import Trial
from dmabench.trials.roof import Roof, roof_of

ROOF = Roof(tflops=2.0, share=0.5, step_s=0.02, about="")


@pytest.mark.parametrize(
    ("flops", "steps", "seconds"),
    [(3e12, 10, 3.0), (3e12, 1000, 20.0), (3e12, None, 3.0)],
)
def test_a_cell_takes_its_operations_or_its_launches(flops, steps, seconds):
    assert ROOF.seconds(Trial("toy", {"steps": steps}, None, Cost(1, flops, 1))) == pytest.approx(seconds)


def test_a_refused_cell_takes_nothing():
    assert ROOF.seconds(Trial("toy", {"steps": 1000}, "too small", Cost(0, 0, 0))) == 0


def test_a_cpu_is_measured_and_says_so():
    roof = roof_of("cpu")
    assert 1e-3 < roof.tflops < 100 and roof.step_s == 0
    assert "operations at 25% of the" in roof.about and "an fp32 matrix product reaches here now" in roof.about
