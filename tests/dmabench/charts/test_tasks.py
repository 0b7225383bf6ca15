"""Charts of trained models, from rows made up for the test."""

import subprocess
import sys

import pytest

from dmabench.charts import tasks as task_charts
from dmabench.store import runs

ABOUT = {"commit": "0123456", "versions": "torch 2.11.0"}


def words(figure):
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.title]
    return [text.get_text() for text in texts]


def hatched(axes):
    return [patch for patch in axes.patches if patch.get_hatch()]


@pytest.fixture
def recall(trained):
    """Five attentions at two lengths and two widths; the narrow MHA has not learned."""
    rows = []
    for seqlen in (2048, 4096):
        for width, control in ((32, 0.6), (64, 0.99)):
            for kind, accuracy in (("mha", control), ("swa", 0.2), ("mla", 0.8), ("nsa", 0.5), ("dma", 0.6)):
                for window in (256, 512, 1024) if kind in ("swa", "dma") else (512,):
                    rows += [
                        trained.made_up(
                            trained.MQAR,
                            kind,
                            min(1.0, accuracy * window / 512) if kind in ("swa", "dma") else accuracy,
                            seqlen=seqlen,
                            d_model=width,
                            window=window,
                            infer_ms=1.0 + window / 512,
                            infer_batch=8,
                        )
                    ]
    return rows


@pytest.fixture
def needles(trained):
    return [
        trained.made_up(trained.NEEDLE, kind, accuracy / (tested / 512), test_len=tested, depth=depth, train_len=1024)
        for kind, accuracy in (("mha", 0.9), ("dma", 1.0))
        for tested in (512, 1024, 2048, 4096)
        for depth in (0, 50, 100)
    ]


def test_importing_loads_no_matplotlib_and_no_torch():
    modules = "dmabench.charts.tasks, dmabench.claims.verdicts"
    code = f"import sys, {modules}; sys.exit(bool({{'matplotlib', 'torch'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_recall_has_a_panel_a_length_and_every_line_named(trained, recall):
    figures = task_charts.draw(trained.MQAR, recall, ABOUT)
    assert list(figures) == ["mqar-accuracy", "mqar-window", "mqar-window-n2", "mqar-time", "mqar-time-n2"]
    figure = figures["mqar-accuracy"]
    assert [axes.get_title() for axes in figure.axes] == ["T = 2k", "T = 4k"]
    assert {"mha", "swa", "mla 16", "nsa 4", "dma"} <= set(words(figure))
    assert any("chance" in text for text in words(figure)) and any("0123456" in text for text in words(figure))
    for axes in figure.axes:
        assert axes.get_ylim() == (-0.03, 1.03)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "64"]


def test_a_control_that_has_not_learned_is_hatched_where_it_is(trained, recall):
    figures = task_charts.draw(trained.MQAR, recall, ABOUT)
    for axes in figures["mqar-accuracy"].axes:
        (patch,) = hatched(axes)
        assert patch.get_x() < 0 < patch.get_x() + patch.get_width() < 1  # the first width alone
    assert any("UNDERTRAINED" in text for text in words(figures["mqar-accuracy"]))
    assert all(hatched(axes) for axes in figures["mqar-time"].axes)
    assert not any(hatched(axes) for axes in figures["mqar-time-n2"].axes)
    assert not any("UNDERTRAINED" in text for text in words(figures["mqar-time-n2"]))


def test_bands_are_the_interval_of_the_summary(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [
        make(task, "mha", value, d_model=width, seed=seed)
        for width in (32, 64)
        for seed, value in enumerate((0.96, 0.97, 0.99))
    ]
    axes = task_charts.draw(task, rows, ABOUT)["mqar-accuracy"].axes[0]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.96, 0.99))


def test_windows_are_drawn_over_pairs_with_those_without_across(trained, recall):
    axes = task_charts.draw(trained.MQAR, recall, ABOUT)["mqar-window-n2"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.5", "1", "2"]
    dma = next(line for line in axes.lines if line.get_color() == "#0072B2")
    assert list(dma.get_ydata()) == pytest.approx([0.3, 0.6, 1.0])
    mha = next(line for line in axes.lines if line.get_color() == "#000000")
    assert set(mha.get_ydata()) == {0.99}


def test_a_run_of_one_setting_is_drawn_too(trained):
    rows = [trained.made_up(trained.MQAR, kind, value) for kind, value in (("mha", 0.97), ("dma", 0.0))]
    (figure,) = task_charts.draw(trained.MQAR, rows, ABOUT).values()
    assert {"mha", "dma"} <= set(words(figure))


def test_needles_have_numbers_in_cells_and_a_line_after_the_trained_length(trained, needles):
    figures = task_charts.draw(trained.NEEDLE, needles, ABOUT)
    assert list(figures) == ["needle-accuracy", "needle-difference"]
    mha, dma, bar = figures["needle-accuracy"].axes
    assert (mha.get_title(), dma.get_title()) == ("mha", "dma")
    assert [text.get_text() for text in mha.texts[:4]] == [".90", ".45", ".23", ".11"]
    assert [text.get_text() for text in dma.texts[:2]] == ["1.00", ".50"]
    assert [line.get_xdata()[0] for line in mha.lines] == [2] and bar.get_ylim() == (0, 1)
    assert [label.get_text() for label in mha.get_xticklabels()] == ["512", "1k", "2k", "4k"]
    assert mha.get_ylim()[0] > mha.get_ylim()[1]  # depth 0 at the top
    difference, bar = figures["needle-difference"].axes
    assert difference.get_title() == "dma" and difference.texts[0].get_text() == "+.10"
    assert bar.get_ylim() == (-1, 1)


def test_kinds_and_positions_of_needles_have_figures_of_their_own(trained, needles):
    rows = [{**row, "kind": kind, "positions": how} for row in needles for kind in ("single", "multi-key")
            for how in ("rope", "none")]  # fmt: skip
    figures = task_charts.draw(trained.NEEDLE, rows, ABOUT)
    told = {next(text for text in words(figure) if "trained 1k" in text) for figure in figures.values()}
    assert len(figures) == 8 and len(told) == 4


def test_patterns_are_a_table(trained):
    make, task = trained.made_up, trained.PATTERNS
    rows = [make(task, kind, 0.99, pattern=name) for kind in ("mha", "dma") for name in ("copy", "select")]
    rows += [make(task, "mha", 0.5, pattern="induce"), make(task, "dma", 0.4, pattern="induce")]
    rows += [make(task, "nsa", None, pattern="copy", status="OUT_OF_MEMORY", reason="x")]
    (figure,) = task_charts.draw(task, rows, ABOUT).values()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["copy", "select", "induce"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mha", "nsa 4", "dma"]
    assert len(hatched(axes)) == 2 and "out of memory" in words(figure)


def test_draw_run_writes_png_and_svg_and_changes_no_setting(trained, recall, tmp_path, environment, monkeypatch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path, "mqar", ["mqar"], {}, environment)
    assert task_charts.draw_run(run.path, trained.MQAR) == []
    for row in recall:
        if row["d_model"] == 64:
            run.append(row)
    written = task_charts.draw_run(run.path, trained.MQAR)
    assert sorted(path.suffix for path in written) == [".png"] * 3 + [".svg"] * 3
    assert all(path.parent == run.path and path.stat().st_size > 5000 for path in written)
    assert dict(matplotlib.rcParams) == before


def test_rows_without_an_accuracy_give_no_chart(trained):
    row = trained.made_up(trained.MQAR, "mha", None, status="UNSUPPORTED", reason="x")
    assert task_charts.nothing_to_draw([row]) == "no row passed, so there is no accuracy"
    assert task_charts.nothing_to_draw([]) == "it has no rows"
