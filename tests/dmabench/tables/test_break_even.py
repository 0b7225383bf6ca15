import pytest

from dmabench.tables.break_even import break_evens, losses


def line(row, speedups, name="dma/flex", **fields):
    """Rows whose speed-ups at doubling lengths from 1024 are these; None is a length that ran out of memory."""
    rows = []
    for n, speedup in enumerate(speedups):
        length = 1024 * 2**n
        dense = 0.1 * 4**n
        rows.append(row("dense/sdpa-flash", length, dense))
        status = {} if speedup else {"status": "OUT_OF_MEMORY", "reason": "needs 90 GiB"}
        rows.append(row(name, length, dense / speedup if speedup else None, **status, **fields))
    return rows


def only(rows):
    (found,) = break_evens(rows)
    return found


def test_the_length_is_interpolated_where_both_are_powers(row):
    """Dense attention grows with T^2 and this one with T: from 1/2 on, one doubling makes it 1."""
    assert only(line(row, [0.5, 2.0])).length == pytest.approx(1024 * 2**0.5)
    rows = [row("dense/sdpa-flash", 1000, 1.0), row("dense/sdpa-flash", 8000, 64.0)]
    rows += [row("dma/flex", 1000, 2.0), row("dma/flex", 8000, 16.0)]
    assert only(rows).length == pytest.approx(2000)
    assert only(line(row, [0.5, 1.0])).length == pytest.approx(2048)


@pytest.mark.parametrize(
    ("speedups", "told"),
    [
        ([1.5, 3.0], "none measured (faster at all)"),
        ([0.2, 0.4, 0.8], "none measured (slower at all)"),
        ([1.5, 0.5], "none measured (slower at the longest)"),
        ([0.5, 2.0], "1400"),
    ],
)
def test_nothing_is_extrapolated(row, speedups, told):
    shown = losses(line(row, speedups))
    assert shown.cells[0][shown.headers.index("break-even T")] == told
    assert (only(line(row, speedups)).length is None) == told.startswith("none")


def test_a_line_that_crosses_several_times_has_its_last_crossing(row):
    found = only(line(row, [0.5, 2.0, 0.5, 2.0]))
    assert 4096 < found.length < 8192 and found.lost == [1024, 4096]


def test_lengths_without_a_time_are_no_points(row):
    found = only(line(row, [0.5, None, 2.0, None]))
    assert found.lengths == [1024, 4096] and found.length == pytest.approx(2048)


def test_a_tie_is_no_loss(row):
    found = only(line(row, [0.995, 2.0]))  # the intervals of made-up rows are 1% either side
    assert found.lost == [] and found.worst["speedup"] == pytest.approx(0.995)
    shown = losses(line(row, [0.995, 2.0]))
    assert "0.995x~" in shown.cells[0] and any(note.startswith("~ the same") for note in shown.notes)


def test_each_setting_is_a_line_and_dense_rows_and_upper_bounds_are_none(row):
    rows = line(row, [0.5, 2.0]) + line(row, [0.9, 2.0], window=64) + line(row, [0.9, 2.0], delta="rising")
    rows += line(row, [0.5, 2.0], "nsa/fla", padded_heads=16)
    assert [(one.row["window"], one.row["delta"]) for one in break_evens(rows)] == [
        (1024, "iid"),
        (64, "iid"),
        (1024, "rising"),
    ]
    shown = losses(rows)
    assert shown.headers == ["backend", "w", "delta", "T measured", "slower at T", "worst", "break-even T"]
    assert shown.cells[0] == ["dma/flex", "1024", "iid", "1024-2048", "1024", "0.500x", "1400"]


def test_one_length_makes_no_table(row):
    assert losses(line(row, [0.5])) is None and losses([]) is None


def test_many_losses_are_counted(row):
    shown = losses(line(row, [0.1, 0.2, 0.3, 0.4]))
    assert shown.cells[0][shown.headers.index("slower at T")] == "4 lengths to 8192"
