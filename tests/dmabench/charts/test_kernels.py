import math
import re
import subprocess
import sys
from itertools import pairwise

import pytest

from dmabench.charts import kernels as charts
from dmabench.charts.labels import Label, spread
from dmabench.charts.style import COLOURS, DARK, GREYS, with_dark_colours
from dmabench.store import runs

ABOUT = {"commit": "0123456", "versions": "torch 2.11.0"}


def texts(figure):
    return [text.get_text() for text in figure.texts + figure.axes[0].texts]


def test_importing_charts_loads_no_matplotlib():
    code = "import sys, dmabench.charts.kernels; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_drawing_changes_no_global_setting(sweep):
    import matplotlib

    before = dict(matplotlib.rcParams)
    charts.draw(sweep, ABOUT)
    assert dict(matplotlib.rcParams) == before


def test_a_sweep_gives_both_charts_with_every_line_named(sweep):
    figures = charts.draw(sweep, ABOUT)
    assert list(figures) == ["latency-fwd-h16g8d128-iid", "speedup-fwd-h16g8d128-iid"]
    latency, speedup = figures.values()
    for name in ("dense/sdpa-cudnn", "dense/sdpa-flash", "dma/flex", "swa/flex"):
        assert name in texts(latency) and name in texts(speedup)
    assert "∝ T²" in texts(latency)
    footer = next(text for text in texts(latency) if "H100" in text)
    assert all(word in footer for word in ("torch 2.11.0", "0123456", "n = 50"))


def test_the_end_of_a_line_that_ran_out_of_memory_is_crossed(sweep):
    latency = charts.draw(sweep, ABOUT)["latency-fwd-h16g8d128-iid"]
    assert "dense/sdpa-math\nout of memory at 32k" in texts(latency)
    (cross,) = [line for line in latency.axes[0].lines if line.get_marker() == "x"]
    assert list(cross.get_xdata()) == [8192] and list(cross.get_ydata()) == [40.0]


def test_losses_are_shown_and_one_is_a_line(row):
    rows = [row("dense/sdpa-flash", 8192, 1.0), row("dma/flex", 8192, 4.0)]
    axes = charts.draw(rows, ABOUT)["speedup-fwd-h16g8d128-iid"].axes[0]
    assert any(list(line.get_ydata()) == [0.25] for line in axes.lines)
    assert any(list(line.get_ydata()) == [1, 1] for line in axes.lines)
    assert axes.get_ylim()[0] < 0.25


def test_an_axis_of_speed_ups_that_hardly_differ_has_several_ticks(row):
    rows = [row("dense/sdpa-flash", 8192, 1.0), row("dma/flex", 8192, 1.15), row("dma/triton", 8192, 1.4)]
    axes = charts.draw(rows, ABOUT)["speedup-fwd-h16g8d128-iid"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.6x", "0.7x", "0.8x", "0.9x", "1x", "1.2x"]


def test_every_delta_pass_and_device_has_its_own_figure(row):
    rows = [
        row("dense/sdpa-flash"),
        row("dma/flex"),
        row("dma/flex", delta="rising"),
        row("dma/flex", device="Other GPU"),
    ]
    rows += [row("dma/flex", **{"pass": "bwd"})]
    stems = [stem for stem in charts.draw(rows, ABOUT) if stem.startswith("latency")]
    assert len(stems) == len(set(stems)) == 4


def test_padded_heads_have_no_speedup_line(row):
    rows = [row("dense/sdpa-flash"), row("dma/flex", total_ms=0.5), row("nsa/triton", total_ms=0.1, padded_heads=True)]
    speedup = charts.draw(rows, ABOUT)["speedup-fwd-h16g8d128-iid"]
    assert "dma/flex" in texts(speedup) and "nsa/triton" not in texts(speedup)


def test_without_a_dense_row_there_is_latency_alone(row):
    assert list(charts.draw([row("dma/flex")], ABOUT)) == ["latency-fwd-h16g8d128-iid"]


def test_a_backend_keeps_its_colour(row):
    alone = charts.draw([row("dma/triton")], ABOUT)["latency-fwd-h16g8d128-iid"]
    among = charts.draw([row("dma/flex"), row("dma/mine"), row("dma/triton")], ABOUT)["latency-fwd-h16g8d128-iid"]
    colours = [line.get_color() for line in among.axes[0].lines]
    assert colours[2] == alone.axes[0].lines[0].get_color() and len(set(colours)) == 3


@pytest.mark.parametrize("wanted", [[0, 0, 0, 0], [100, 100, 100], [0, 1, 50, 99, 100], [5.0]])
def test_labels_never_overlap(wanted):
    places = spread([float(value) for value in wanted], [10.0] * len(wanted), 100.0)
    assert all(above - below >= 9.999 for below, above in pairwise(places))
    assert max(places) <= 100


def test_draw_run_writes_png_and_svg(stored):
    _, path = stored
    written = charts.draw_run(path)
    assert sorted(one.suffix for one in written) == [".png", ".png", ".svg", ".svg"]
    assert all(one.parent == path and one.stat().st_size > 5000 for one in written)


def test_the_same_rows_give_the_same_svg(sweep, tmp_path):
    contents = []
    for name in ("a", "b"):
        figure = charts.draw(sweep, ABOUT)["latency-fwd-h16g8d128-iid"]
        contents.append(charts.save(figure, tmp_path / name)[1].read_bytes())
    assert contents[0] == contents[1]


def test_a_run_without_times_draws_nothing_and_says_why(tmp_path, environment, row, caplog, monkeypatch):
    monkeypatch.setattr(runs.environment_module, "gpu_state", lambda: [])
    run = runs.Run.start(tmp_path, "kernels", [], {}, environment)
    with caplog.at_level("INFO"):
        assert charts.draw_run(run.path) == []
        run.append(row("dma/cuda", total_ms=None, status="UNSUPPORTED"), None)
        assert charts.draw_run(run.path) == []
    assert "it has no rows" in caplog.text and "no row passed" in caplog.text


def test_a_length_without_a_correct_time_is_a_gap(row):
    rows = [row("dense/sdpa-flash", length) for length in (1024, 2048, 4096)]
    rows += [row("dma/flex", 1024), row("dma/flex", 2048, None, status="INCORRECT", reason="x"), row("dma/flex", 4096)]
    figure = charts.draw(rows, ABOUT)["latency-fwd-h16g8d128-iid"]
    line = next(line for line in figure.axes[0].lines if line.get_color() == "#0072B2")
    assert list(line.get_xdata()) == [1024, 2048, 4096] and math.isnan(line.get_ydata()[1])
    assert any("gaps: INCORRECT" in text for text in texts(figure))


def test_a_backend_has_one_colour_in_both_charts(row):
    rows = [row("dense/sdpa-flash"), row("dma/mine"), row("swa/other")]
    rows += [row("dma/cuda", total_ms=None, status="UNSUPPORTED")]
    both = charts.draw(rows, ABOUT).values()
    colours = [{text.get_text(): text.get_color() for text in figure.axes[0].texts} for figure in both]
    assert all(colours[0][name] == colours[1][name] for name in ("dma/mine", "swa/other"))


def test_lines_that_end_together_share_a_label_and_stacked_ones_do_not_overlap(row):
    rows = [row("dense/sdpa-flash", length) for length in (8192, 16384, 32768)]
    for name, window, ms in (("masked", 1024, 9.0), ("masked", 2048, 9.1), ("math", 1024, 12.0)):
        rows.append(row(f"dma/{name}", 8192, ms, window=window))
        rows.append(row(f"dma/{name}", 16384, None, window=window, status="OUT_OF_MEMORY", reason="x"))
    figure = charts.draw(rows, ABOUT)["latency-fwd-h16g8d128-iid"]
    ends = [text for text in figure.axes[0].texts if "out of memory" in text.get_text()]
    assert sorted(text.get_text().split("\n")[0] for text in ends) == ["dma/masked, w 1k, 2k", "dma/math"]
    boxes = [text.get_window_extent() for text in ends]
    assert not boxes[0].overlaps(boxes[1])


def test_a_long_name_is_cut_to_fit_beside_the_axes():
    label = Label(1.0, 1.0, "#000000", "dma/" + "x" * 60, "w 1k", "")
    assert len(label.text) == 28 and label.text.endswith("…, w 1k")


def test_every_colour_of_a_chart_has_one_for_dark_pages(sweep, tmp_path):
    sweep = [*sweep, *({**one, "backend": f"b{n}"} for n, one in enumerate(sweep) if one["function"] == "dma")]
    for figure in charts.draw(sweep, ABOUT).values():
        svg = charts.save(figure, tmp_path / "a")[1].read_text()
        used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
        assert used and used <= set(DARK), used - set(DARK)
        assert "prefers-color-scheme: dark" in with_dark_colours(svg)
    assert {colour.lower() for colour in (*COLOURS, *GREYS)} <= set(DARK)
