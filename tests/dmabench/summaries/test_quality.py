"""Layer times beside qualities, made up: every ratio and margin can be done in the head."""

import math

import pytest

from dmabench.summaries import quality
from dmabench.summaries.quality import headline, layer_times, panels_of, points, qualities, unmatched
from dmabench.tasks.task import Axis

DEVICE = "Made-up GPU"
DENSE_MS = 8.0


def layers(row, **fields):
    """A dense layer of 8 ms, and DMA's of 1, 2 and 4 ms at three windows, each with a slower backend beside it."""
    told = {"level": "layer", "device": DEVICE, "run": "timed", **fields}
    rows = [row("dense/sdpa-cudnn", 2048, DENSE_MS, **told), row("dense/sdpa-flash", 2048, 9.0, **told)]
    for window, ms in ((256, 1.0), (512, 2.0), (1024, 4.0)):
        rows += [row("dma/cuda", 2048, ms, window=window, **told), row("dma/flex", 2048, 3 * ms, window=window, **told)]
    return rows


def recall(trained, of_window, control=0.99, **fields):
    made, task = trained.made_up, trained.MQAR
    rows = [made(task, "mha", control, run="scored", **fields)]
    return rows + [made(task, "dma", share, window=w, run="scored", **fields) for w, share in of_window.items()]


@pytest.fixture
def scored(trained):
    """(share by window, ...) -> qualities of recall."""
    return lambda of_window, **fields: qualities(trained.MQAR, recall(trained, of_window, **fields))


def test_the_fastest_backend_stands_for_an_attention_and_mha_is_dense(row):
    times = layer_times([*layers(row), row("dma/cuda", 2048, 0.1, level="kernel", device=DEVICE)])
    told = {(one["attention"], one["window"]): (one["backend"], one["ms"], one["speedup"]) for one in times}
    assert told["mha", None] == ("dense/sdpa-cudnn", 8.0, 1.0)
    assert told["dma", 512] == ("dma/cuda", 2.0, 4.0) and len(told) == 4


@pytest.mark.parametrize(
    "fields", [{"status": "INCORRECT", "total_ms": None}, {"padded_heads": 16}, {"pass": "decode"}]
)
def test_what_has_no_fair_time_is_left_out(row, fields):
    assert layer_times([row("nsa/fla", 2048, level="layer", **fields)]) == []


def test_the_headline_is_the_smallest_window_within_the_margin(row, scored):
    (panel,) = panels_of(points(layer_times(layers(row)), scored({256: 0.5, 512: 0.98, 1024: 0.99}), {"mqar": 0.01}))
    found = headline(panel)
    assert (found.window, found.speedup) == (512, 4.0)  # 0.98 is 0.99 less the margin, so it still counts
    assert found.text.startswith("4x at w 512, with 0.98 beside MHA's 0.99 (margin 0.01): dma/cuda 2 ms")


def test_no_window_within_the_margin_is_said(row, scored):
    frame = points(layer_times(layers(row)), scored({256: 0.5, 512: 0.9, 1024: 0.979}), {"mqar": 0.01})
    found = headline(panels_of(frame)[0])
    assert found.window is None and found.speedup is None
    assert (
        found.text == "none: no window is within the margin of MHA's 0.99 (margin 0.01); the nearest, w 1024, has 0.979"
    )
    # A wider margin, that of the constant where no claim has one, lets it through.
    assert headline(panels_of(points(layer_times(layers(row)), scored({1024: 0.979}), {}))[0]).window == 1024


def test_an_untrained_control_gives_no_headline(row, scored):
    frame = points(layer_times(layers(row)), scored({512: 0.9}, control=0.5), {})
    found = headline(panels_of(frame)[0])
    assert found.window is None and "UNDERTRAINED" in found.text and set(frame["status"]) == {"UNDERTRAINED"}
    assert not frame["within"].any() and frame["bound"].isna().all()


def test_a_control_that_fails_beyond_its_training_sets_no_bound(row, trained):
    rows = [
        trained.made_up(trained.NEEDLE, kind, share if length > 1024 else 0.99, test_len=length, run="scored")
        | ({"window": 512} if kind == "dma" else {})
        for kind, share in (("mha", 0.2), ("dma", 0.9))
        for length in (1024, 2048)
    ]
    (panel,) = panels_of(points(layer_times(layers(row)), qualities(trained.NEEDLE, rows), {}))
    assert (
        headline(panel).text
        == "none: MHA itself has 0.2 here, below the 0.9 that it needs, so to be as good says nothing"
    )


@pytest.mark.parametrize("fields", [{"device": "Another GPU"}, {"seqlen": 4096}])
def test_times_and_qualities_meet_at_one_device_and_length_only(row, scored, fields):
    assert len(points(layer_times(layers(row)), scored({512: 0.98}, **fields), {})) == 0


def test_runs_are_never_averaged(row, scored):
    twice = layer_times(layers(row)) + layer_times(layers(row, run="again"))
    frame = points(twice, scored({512: 0.98}), {"mqar": 0.01})
    panels = panels_of(frame)
    assert [set(panel["time_run"]) for panel in panels] == [{"timed"}, {"again"}]
    assert all(len(panel) == 2 for panel in panels)


def test_every_delta_has_dense_beside_it(row, scored):
    rows = [*layers(row), *(layers(row, delta="rising")[2:])]
    panels = panels_of(points(layer_times(rows), scored({512: 0.98}), {"mqar": 0.01}))
    assert [panel["delta"].unique().tolist() for panel in panels] == [["iid"], ["rising"]]
    assert [headline(panel).speedup for panel in panels] == [4.0, 4.0]


def test_perplexity_is_better_when_lower_and_a_mean_of_losses(row, trained):
    task = trained.task("train", "Language", (Axis("seqlen", int, ""),), 0.0)
    rows = [
        trained.made_up(task, kind, 0.5, seqlen=2048, seed=seed, run="scored", bits_per_byte=1.0, test_loss=loss + seed)
        | {"window": 512 if kind == "dma" else None}
        for kind, loss in (("mha", 2.0), ("dma", 2.005))
        for seed in (0, 1)
    ]
    told = qualities(task, rows)
    assert [one["quality"] for one in told] == pytest.approx([math.exp(2.5), math.exp(2.505)])
    assert told[0]["better"] == "lower" and told[0]["seeds"] == 2 and told[0]["low"] == pytest.approx(math.exp(2))
    found = headline(panels_of(points(layer_times(layers(row)), told, {}))[0])
    assert found.window == 512 and f"margin {quality.LOSS_MARGIN:g} nats" in found.text


def test_needles_have_a_point_at_each_tested_length(trained):
    rows = [
        trained.made_up(trained.NEEDLE, kind, 1.0 if depth else 0.9, test_len=length, depth=depth)
        for kind in ("mha", "dma")
        for length in (1024, 2048)
        for depth in (0, 100)
    ]
    told = qualities(trained.NEEDLE, rows)
    assert [(one["attention"], one["seqlen"]) for one in told] == [
        ("mha", 1024),
        ("mha", 2048),
        ("dma", 1024),
        ("dma", 2048),
    ]
    assert all(one["quality"] == pytest.approx(0.95) for one in told)


def test_ablations_and_other_peoples_checkpoints_are_no_attentions(trained):
    assert qualities(trained.MQAR, [trained.made_up(trained.MQAR, "dma", 0.9, variant="no-bias")]) == []
    assert qualities(trained.MQAR, [trained.made_up(trained.MQAR, "mha", 0.9, model="a/checkpoint")]) == []


def test_what_lacks_a_time_has_its_command(row, scored):
    told = scored({512: 0.98, 2048: 0.99})
    missing, commands = unmatched(layer_times(layers(row)), told)
    assert missing == 1 and commands == ["dmabench kernels --level layer --seqlen 2048 --window 512,2048"]
    assert unmatched([], [])[0] == 0
