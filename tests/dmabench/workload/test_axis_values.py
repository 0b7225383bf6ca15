import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.errors import Refusal
from dmabench.tasks.task import Axis
from dmabench.trials.cells import text
from dmabench.workload.axis_values import values_of

KINDS = Axis("attention", str, "", choices=("mha", "dma"))
WIDTH = Axis("d_model", int, "", least=4)
RATE = Axis("lr", float, "", least=0)
FILL = Axis("fill", bool, "")


@pytest.mark.parametrize(
    ("axis", "given", "values"),
    [
        (WIDTH, "1k:4k:x2,8", [1024, 2048, 4096, 8]),
        (WIDTH, 64, [64]),
        (WIDTH, (64, 128, 64), [64, 128]),
        (WIDTH, None, [None]),
        (RATE, "1e-3, 0.003,1e-3", [0.001, 0.003]),
        (RATE, 0.5, [0.5]),
        (KINDS, "dma,mha", ["dma", "mha"]),
        (FILL, "yes,off", [True, False]),
        (FILL, False, [False]),
    ],
)
def test_values(axis, given, values):
    assert values_of(axis, given) == values


@pytest.mark.parametrize(
    ("axis", "given", "told"),
    [
        (WIDTH, "2", "--d-model 2: 2 is too small; the least is 4"),
        (WIDTH, "wide", "--d-model 'wide' is not a number or a sweep"),
        (RATE, "fast", "--lr 'fast' is not a number; write 0.001 or 1e-3,3e-3"),
        (RATE, "nan", "--lr 'nan' is not a number"),
        (RATE, "inf", "--lr 'inf' is not a number"),
        (RATE, "-1e-3", "--lr -1e-3: too small; the least is 0"),
        (KINDS, "dna", "did you mean dma?"),
        (KINDS, "mha,", "choose from mha, dma"),
        (Axis("fate", str, ""), "a,,b", "--fate: a value is empty"),
        (FILL, "maybe", "neither yes nor no"),
    ],
)
def test_what_an_axis_has_not_is_refused(axis, given, told):
    with pytest.raises(Refusal) as refusal:
        values_of(axis, given)
    assert told in str(refusal.value)


@given(st.lists(st.integers(4, 2**31 - 1), min_size=1, max_size=8), st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_what_is_shown_can_be_typed(numbers, rates):
    assert values_of(WIDTH, text(numbers)) == list(dict.fromkeys(numbers))
    shown = [float(text(rate)) for rate in rates]
    assert values_of(RATE, text(shown)) == list(dict.fromkeys(shown))
