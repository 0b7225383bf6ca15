"""Cells from axes: which there are, which are one, which cannot be, and how machines share them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.errors import Refusal
from dmabench.tasks.task import Cost, Mode
from dmabench.trials.cells import blocks_of, from_json, label, make_trials, seeds_of, shard, varying


@pytest.fixture(scope="module")
def trials(toy):
    def make(preset=None, task=toy, **given):
        return make_trials(task, blocks_of(task, preset, given, "cpu"))

    return make


def test_an_axis_of_some_attentions_is_none_for_the_others_and_no_cell_runs_twice(trials):
    found = trials(attention="mha,swa,dma", window="8,16,32")
    assert [(t.settings["attention"], t.settings["window"]) for t in found] == [
        ("mha", None),
        *((kind, window) for kind in ("swa", "dma") for window in (8, 16, 32)),
    ]
    assert len({trial.id for trial in found}) == 7


def test_flags_override_presets_and_these_the_defaults_of_the_device(toy):
    assert blocks_of(toy, "quick", {"lr": "1"}, "cpu") == [{**toy.defaults["cpu"], "window": "8", "lr": "1"}]
    assert blocks_of(toy, "quick", {"window": "9"}, "cuda:1")[0]["window"] == "9"
    assert blocks_of(toy, None, {}, "cuda:1")[0]["steps"] == "2k"
    with pytest.raises(Refusal, match="did you mean quick"):
        blocks_of(toy, "quik", {}, "cpu")


def test_blocks_share_cells_and_come_one_after_the_other_with_the_first_seed_first(trials):
    found = trials("two", window="8")
    assert [(t.settings["seed"], t.settings["attention"], t.settings["lr"]) for t in found] == [
        (0, "mha", 1e-3),
        (0, "mha", 3e-3),
        (0, "dma", 1e-3),
        (0, "dma", 3e-3),
        (1, "mha", 1e-3),
        (1, "dma", 1e-3),
    ]
    assert seeds_of(found) == [0, 1]


def test_the_first_block_is_done_with_all_its_seeds_before_the_second(toy):
    blocks = blocks_of(toy, None, {"attention": "mha"}, "cpu")
    found = make_trials(toy, [{**blocks[0], "seed": "0,1"}, {**blocks[0], "seed": "0,1", "lr": "7"}])
    assert [(t.settings["seed"], t.settings["lr"] == 7) for t in found] == [
        (0, False),
        (1, False),
        (0, True),
        (1, True),
    ]
    assert [t.number for t in found] == [0, 1, 2, 3]


def test_an_axis_that_is_not_swept_and_a_switch(toy, trials):
    (one,) = trials(attention="mha", lengths="64,128", fillers=False)
    assert one.settings["lengths"] == (64, 128) and one.settings["fillers"] is False
    assert list(one.settings) == [axis.name for axis in toy.axes]
    assert from_json({"lengths": [64, 128], "seed": 0}) == {"lengths": (64, 128), "seed": 0}


def test_what_nobody_names_is_completed_from_the_rest(trials):
    assert [t.settings["lengths"] for t in trials(attention="mha", steps="16,20")] == [(64,), (80,)]
    assert trials(attention="mha", steps="16")[0].id == trials(attention="mha", steps="16", lengths="64")[0].id


def test_the_id_is_that_of_the_settings_alone(toy, trials):
    first, again, other = trials(), trials(), trials(lr="2e-3")
    assert [t.id for t in first] == [t.id for t in again] and not {t.id for t in first} & {t.id for t in other}
    assert trials(task=replace(toy, name="other"))[0].id != first[0].id


def test_a_cell_that_cannot_be_says_why_and_costs_nothing(trials):
    found = trials(window="8,128", lengths="64")
    refused = [trial for trial in found if trial.refusal]
    assert len(found) == 3 and len(refused) == 1 and refused[0].cost == Cost(0, 0, 0)
    assert "take --window 64 or less" in refused[0].refusal


def test_where_no_cell_can_be_the_command_is_refused(trials):
    with pytest.raises(Refusal, match=r"take --window 64 or less \(and 1 more cells cannot be either\)"):
        trials(attention="dma", window="128,256", lengths="64")


def test_too_many_cells_are_refused_before_they_are_made(trials):
    with pytest.raises(Refusal, match=r"cells are more than 10000 \(1000 of seed, 200 of lr, 2 of attention\)"):
        trials(window="8", seed="0:999:1", lr=",".join(str(n / 1000) for n in range(1, 201)))


def test_a_task_that_sets_what_it_has_not_is_told(toy):
    with pytest.raises(ValueError, match="toy sets depth, which are none of its axes"):
        blocks_of(replace(toy, defaults={"cpu": {"depth": 1}}), None, {}, "cpu")


@given(st.integers(1, 8), st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True))
def test_shards_divide_the_cells_into_alike_parts(trials, count, steps):
    found = trials(steps=",".join(map(str, steps)), window="1,2", lengths="128")
    if count > len(found):
        with pytest.raises(Refusal, match="at most"):
            shard(found, f"1/{count}")
        return
    parts = [shard(found, f"{index}/{count}") for index in range(1, count + 1)]
    assert sorted(t.id for part in parts for t in part) == sorted(t.id for t in found)
    loads = [sum(t.cost.flops for t in part) for part in parts]
    assert max(loads) - min(loads) <= max(t.cost.flops for t in found)
    assert shard(found, None) == found


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_is_none(trials, text):
    with pytest.raises(Refusal, match="from 1/4 to 4/4"):
        shard(trials(), text)


def test_a_label_tells_what_varies(toy, trials):
    found = trials(lr="1e-3,3e-3")
    assert varying(toy, found) == ["attention", "window", "lr"]
    assert [label(t, varying(toy, found)) for t in (found[0], found[-1])] == ["mha lr=0.001", "dma window=16 lr=0.003"]


def test_an_axis_that_chooses_a_mode_brings_its_defaults_and_leaves_the_others_out(toy):
    mode = Mode(
        "scores what is there", axes=("steps", "seed", "fillers"), alone=("fillers",), defaults={"cpu": {"seed": "4"}}
    )
    task = replace(toy, modes={"steps": mode}, refusal=lambda settings: None)
    (trial,) = make_trials(task, blocks_of(task, None, {"steps": "7"}, "cpu"))
    told = {name: value for name, value in trial.settings.items() if value is not None}
    assert told == {"steps": 7, "seed": 4, "lengths": (28,)}
    for axes, preset, words in (
        ({"steps": "7", "lr": "1"}, None, "--steps scores what is there: leave out --lr"),
        ({"steps": "7"}, "quick", "--steps scores what is there: leave out --preset quick"),
        ({"fillers": True}, None, "--fillers goes with --steps, which scores what is there"),
    ):
        with pytest.raises(Refusal, match=words):
            blocks_of(task, preset, axes, "cpu")
    assert blocks_of(task, None, {"lr": "1"}, "cpu") == [{**toy.defaults["cpu"], "lr": "1"}]
