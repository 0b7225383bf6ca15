import io

import pytest
from rich.console import Console

from dmabench.tables.kernels import add_speedups, kernels_frame, kernels_table, lints, markdown_table


def drawn(rows, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width).print(kernels_table(rows, width))
    return stream.getvalue()


def test_speedup_is_against_the_fastest_passed_dense_row(row):
    rows = add_speedups(
        [
            row("dense/sdpa-flash", total_ms=1.0),
            row("dense/sdpa-cudnn", total_ms=0.1, status="INCORRECT"),
            row("dense/sdpa-math", total_ms=4.0),
            row("dma/flex", total_ms=0.5),
            row("dma/cuda", total_ms=None, status="UNSUPPORTED"),
        ]
    )
    assert [one["speedup"] for one in rows] == [1.0, None, 0.25, 2.0, None]
    assert {one["baseline"] for one in rows} == {"sdpa-flash"}


@pytest.mark.parametrize("field", ["run", "device", "pass", "level", "batch", "heads", "kv_heads", "head_dim", "dtype"])
def test_rows_of_another_shape_run_or_device_are_never_compared(row, field):
    rows = add_speedups([row("dense/sdpa-flash", **{field: "other"}), row("dma/flex", **{field: "own"})])
    assert rows[1]["speedup"] is None


def test_window_and_delta_do_not_keep_dense_rows_away(row):
    rows = add_speedups([row("dense/sdpa-flash", total_ms=3.0), row("dma/flex", window=2048, delta="rising")])
    assert rows[1]["speedup"] == 3.0


def test_add_speedups_changes_no_row_it_is_given(row):
    rows = [row("dense/sdpa-flash"), row("dma/flex")]
    add_speedups(rows)
    assert "speedup" not in rows[1]


def test_table_fits_and_says_shared_fields_once(sweep):
    text = drawn(add_speedups(sweep))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.count("NVIDIA H100") == 1 and text.count("bf16") == 1
    assert "32.0x" in text and "UNSUPPORTED[2]" in text
    assert "[2] the CUDA kernels are not built yet" in text and text.count("needs 128 GiB") == 1


def test_a_wide_table_drops_columns_and_says_so(row, sweep):
    more = [row(f"dma/{name}", pass_="x", delta="clustered", **{"pass": "fwd+bwd"}) for name in ("flex", "sdpa-masked")]
    text = drawn(add_speedups(sweep + more))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "left out to fit 100 columns" in text
    assert "dma/sdpa-masked" in text and "OUT_OF_MEMORY[1]" in text


def test_a_row_that_failed_shows_no_time(row):
    text = drawn([row("dma/flex", total_ms=7.77, status="INCORRECT", reason="dq off by 3 budgets")])
    assert "7.7" not in text and "dq off by 3 budgets" in text


def test_markup_in_a_reason_is_shown_as_it_is(row):
    text = drawn([row("dma/cuda", total_ms=None, status="RUNTIME_ERROR", reason="[red]x[/red] [/nope]")])
    assert "[red]x[/red] [/nope]" in text


def test_markdown_has_a_line_a_row(sweep):
    lines = markdown_table(add_speedups(sweep)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == len(sweep) + 2
    assert len({line.count("|") for line in table}) == 1
    assert "- [1] needs 128 GiB" in lines


def test_a_table_without_rows_can_be_drawn():
    assert "status" in drawn([])


def test_frame_is_numeric_and_complete(sweep):
    frame = kernels_frame(sweep)
    assert frame["total_ms"].dtype == float and frame["total_ms"].isna().sum() == 3
    assert frame["executed_tflops"].isna().all()
    assert frame["id"].iloc[0] == "dense/sdpa-cudnn"


@pytest.mark.parametrize(
    ("dense", "other", "words"),
    [
        ({"status": "OUT_OF_MEMORY", "total_ms": None}, {}, "no dense row"),
        ({"total_ms": 9.0}, {}, "above 1/density"),
        ({"roof_percent": 12.0}, {}, "under 20% of the measured roof"),
        ({}, {"total_ms": 1.001, "p10_ms": 0.99, "p90_ms": 1.01}, 'verdict "same"'),
        ({}, {"p10_ms": 0.4, "p90_ms": 0.6}, "noisy"),
        ({}, {"kernel_ms": 0.7}, "something else was using the machine"),
        ({}, {"throttled": True}, "throttled while"),
        ({}, {"wall_ms": 0.6, "gpu_ms": 0.5}, "host-bound"),
        ({}, {"seqlen": 1024, "window": 1024, "density": 1.0}, "no longer than the window"),
    ],
)
def test_each_lint(row, dense, other, words):
    base = {"total_ms": 1.0, **dense}
    mine = {"total_ms": 0.5, **other}
    rows = [row("dense/sdpa-flash", **base), row("dma/flex", **mine)]
    found = lints(rows)
    assert any(words in sentence for sentence in found), found


def test_nothing_to_doubt_gives_no_lint(row):
    assert lints([row("dense/sdpa-flash", total_ms=1.0), row("dma/flex", total_ms=0.5)]) == []


def test_a_throttled_end_of_run_is_named():
    state = {"before": [], "after": [{"throttled": True, "reasons": ["sw_power_cap"]}]}
    assert lints([], state) == ["A GPU was throttled when the run ended (sw_power_cap)."]


def test_overlapping_intervals_are_marked(row):
    rows = add_speedups([row("dense/sdpa-flash", total_ms=1.0), row("dma/flex", total_ms=0.999)])
    text = drawn(rows)
    assert "1.00x~" in text and "~ the same" in text


def test_padded_heads_are_marked(row):
    text = drawn(add_speedups([row("dense/sdpa-flash"), row("nsa/triton", padded_heads=True)]))
    assert "nsa/triton†" in text and "no headline ratio" in text


def test_a_backend_that_can_run_nowhere_is_one_line(row):
    lengths = (1024, 2048, 4096)
    rows = [row("dense/sdpa-flash", length) for length in lengths]
    rows += [row("dma/cuda", length, None, status="UNSUPPORTED", reason="not built yet") for length in lengths]
    rows += [row("dma/triton", length, None, status="UNSUPPORTED", reason=f"no T {length}") for length in lengths]
    lines = drawn(rows).splitlines()
    (line,) = [line for line in lines if "dma/cuda" in line]
    assert "all" in line.split() and "UNSUPPORTED[" in line
    assert sum("dma/triton" in line for line in lines) == 3  # each for a reason of its own
    assert len(kernels_frame(rows)) == 9


def test_a_caption_is_broken_between_its_parts(row):
    lines = drawn([row("dma/flex", device="A device with quite a long name, of which there are several here")])
    assert all(part in lines for part in ("G 8", "H 16", "D 128", "level kernel"))


def test_decoding_shows_caches_and_a_layer_no_empty_parts(row):
    """A row without parts leaves their columns out; settings of the paper are marked, padded heads have no ratio."""
    parts = dict.fromkeys(("importance_ms", "plan_ms", "kernel_ms"))
    fields = {"pass": "decode", "level": "layer", **parts}
    rows = [
        row("dense/sdpa-flash", total_ms=2.0, cache_mib=64.0, **fields),
        row("dma/live-keys", total_ms=1.0, cache_mib=2.0, **fields),
        row("nsa/fla", total_ms=1.0, cache_mib=68.0, window=None, padded_heads=16, **fields),
    ]
    lines = markdown_table(add_speedups(rows)).splitlines()
    headers = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert "cache MiB" in headers and not {"imp.", "plan", "kernel"} & set(headers)
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:7]}
    assert cells["dma/live-keys"][headers.index("cache MiB")] == "2.00"
    assert cells["dma/live-keys"][headers.index("speed-up")] == "2.00x"
    assert cells["nsa/fla*†"][headers.index("speed-up")] == ""
