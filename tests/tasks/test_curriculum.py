"""The curriculum of recall: from few pairs to the target, by step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.tasks.curriculum import stages
from dmabench.tasks.recall_examples import Layout

TARGET = Layout(512, 4096)


def test_on_grows_fourfold_to_the_target():
    found = stages("on", TARGET, 1000)
    assert [stage.layout.pairs for stage in found] == [4, 16, 64, 256, 512]
    assert [stage.layout.seqlen for stage in found] == [32, 128, 512, 2048, 4096]
    assert [stage.first_step for stage in found] == [0, 200, 266, 333, 400]
    assert found[-1].layout is TARGET


def test_off_is_the_target_from_the_start():
    (stage,) = stages("off", TARGET, 1000)
    assert (stage.first_step, stage.layout) == (0, TARGET)


def test_pairs_may_be_named():
    assert [stage.layout.pairs for stage in stages("8+100", TARGET, 50)] == [8, 100, 512]


def test_too_few_steps_have_no_curriculum():
    assert [stage.layout for stage in stages("on", TARGET, 5)] == [TARGET]


@pytest.mark.parametrize("curriculum", ["of", "8+", "8+512", "0+8", "8,16"])
def test_what_is_no_curriculum_is_refused(curriculum):
    with pytest.raises(ValueError, match="on, off, or numbers of pairs below the target"):
        stages(curriculum, TARGET, 1000)


@given(st.integers(1, 200), st.integers(0, 300), st.integers(1, 2000))
def test_every_stage_can_be_made_and_has_its_steps(pairs, more, steps):
    target = Layout(pairs, 4 * pairs + 2 * more)
    found = stages("on", target, steps)
    assert found[0].first_step == 0
    assert found[-1].layout == target
    assert all(stage.layout.refusal() is None for stage in found)
    firsts = [stage.first_step for stage in found]
    assert firsts == sorted(set(firsts))
    assert firsts[-1] <= 0.5 * steps
