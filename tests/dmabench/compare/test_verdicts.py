import math

import numpy as np
import pytest

from dmabench.compare.notes import differences, doubts
from dmabench.compare.table import cell_as_json, layout, regressions, sums
from dmabench.compare.verdicts import DRIFT, SMALLEST, Measured, blocks, compare, controls_drift, verdict
from dmabench.statistics.intervals import Estimate


def noisy(rng, turns, each, level=1.0, heavy=0.05):
    """Milliseconds as machines give them: a drift from process to process, one from turn to turn, samples of a turn
    that follow one another (autocorrelation 0.6), tails of Student's t with 3 degrees of freedom, and strays up to
    twice as slow."""
    process, found = rng.normal(0, DRIFT), []
    for _ in range(turns):
        turn, last = rng.normal(0, 0.005), rng.normal()
        for _ in range(each):
            last = 0.6 * last + 0.8 * rng.standard_t(3) / math.sqrt(3)
            stray = abs(rng.normal(0, 0.3)) if rng.random() < heavy else 0.0
            found.append(level * math.exp(process + turn + 0.008 * last + stray))
    return found


@pytest.fixture
def make_run(row):
    """make_run({name or (name, field values): samples}, turns): rows and samples of a run."""

    def make(cells, turns=None):
        rows, samples = [], {}
        for key, values in cells.items():
            name, fields = key if isinstance(key, tuple) else (key, ())
            one = row(name, total_ms=float(np.median(values)) if values else None, **dict(fields))
            rows.append(one)
            if values:
                samples[one["cell"]] = {"cell": one["cell"], "gpu_ms": values, "wall_ms": [v / 2 for v in values]}
                samples[one["cell"]] |= {"turns": turns} if turns else {}
        return Measured(rows, samples)

    return make


def at(name, seqlen=8192, **fields):
    return name, (("seqlen", seqlen), *fields.items())


def pair(make_run, seed, shape, factor, stored=True, cells=200):
    """Two runs of the same cells, the second `factor` times as slow."""
    rng, (turns, each) = np.random.default_rng(seed), shape
    lengths = [("dma/flex", (("seqlen", 1000 + n),)) for n in range(cells)]
    taken = [each] * turns if stored else None
    return [make_run({key: noisy(rng, turns, each, level) for key in lengths}, taken) for level in (1.0, float(factor))]


def rates(comparison):
    total = len(comparison.cells)
    return {name: count / total for name, count in comparison.counts().items()}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("shape", [(10, 3), (6, 10), (25, 2)])
def test_a_run_and_its_repetition_are_the_same(make_run, shape, stored):
    comparison = compare(*pair(make_run, 1, shape, 1, stored))
    found = rates(comparison)
    assert found["SAME"] >= 0.95
    assert found.get("SLOWER", 0) + found.get("FASTER", 0) <= 0.02
    assert not any(cell.regressed(0.05) for cell in comparison.cells)


@pytest.mark.parametrize(("factor", "word", "other"), [(1.05, "SLOWER", "FASTER"), (1 / 1.05, "FASTER", "SLOWER")])
@pytest.mark.parametrize("shape", [(10, 3), (6, 10)])
def test_five_percent_is_found_in_thirty_samples(make_run, shape, factor, word, other):
    found = rates(compare(*pair(make_run, 2, shape, factor)))
    assert found[word] >= 0.9 and other not in found


def test_a_regression_must_be_clear_of_the_share(make_run):
    ten = compare(*pair(make_run, 3, (10, 3), 1.10)).cells
    assert sum(cell.regressed(0.05) for cell in ten) >= 0.9 * len(ten)
    four = compare(*pair(make_run, 3, (10, 3), 1.04)).cells
    assert sum(cell.regressed(0.05) for cell in four) <= 0.01 * len(four)
    assert sum(cell.regressed(0.0) for cell in four) >= 0.5 * len(four)


def test_noise_that_hides_five_percent_is_unsure_and_not_the_same(make_run):
    rng = np.random.default_rng(4)
    cells = [("dma/flex", (("seqlen", 1000 + n),)) for n in range(50)]
    a, b = (make_run({key: list(np.exp(rng.normal(0, 0.2, 12))) for key in cells}, [1] * 12) for _ in range(2))
    assert rates(compare(a, b))["UNSURE"] >= 0.9


def test_what_correlates_within_turns_is_not_taken_for_many_samples(make_run):
    """Turns that differ by 4%, with steady samples inside: 200 samples know no more than 4 turns do."""
    a = make_run({"dma/flex": [level for level in (1.0, 1.04, 1.0, 1.04) for _ in range(50)]}, [50] * 4)
    b = make_run({"dma/flex": [level for level in (1.04, 1.08, 1.04, 1.08) for _ in range(50)]}, [50] * 4)
    assert compare(a, b).cells[0].verdict == "UNSURE"


@pytest.mark.parametrize(
    ("low", "value", "high", "word"),
    [
        (0.98, 1.0, 1.02, "SAME"),
        (1.005, 1.02, 1.035, "SAME"),  # it differs, and by less than anybody asks for
        (0.99, 1.035, 1.045, "SAME"),
        (1.01, 1.04, 1.07, "SLOWER"),
        (0.93, 0.96, 0.99, "FASTER"),
        (0.97, 1.04, 1.11, "UNSURE"),
        (0.8, 1.0, 1.25, "UNSURE"),
    ],
)
def test_a_verdict_needs_an_interval_and_a_size(low, value, high, word):
    logs = Estimate(math.log(value), math.log(low), math.log(high))
    assert verdict(logs) == word
    swapped = {"SLOWER": "FASTER", "FASTER": "SLOWER"}.get(word, word)
    assert verdict(Estimate(-logs.value, -logs.high, -logs.low)) == swapped


def test_blocks_are_turns_where_they_are_stored():
    values = list(range(10))
    assert [list(block) for block in blocks(values, [3, 5, 2])] == [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9]]
    for stored in (None, [], [10], [3, 5]):  # older runs, and turns that do not fit
        assert [list(block) for block in blocks(values, stored)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [list(block) for block in blocks([1.0, 2.0], None)] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("PASSED", "INCORRECT", "WORSE"),
        ("PASSED", "OUT_OF_MEMORY", "WORSE"),
        ("UNSUPPORTED", "RUNTIME_ERROR", "WORSE"),
        ("INCORRECT", "PASSED", "BETTER"),
        ("TIMEOUT", "OUT_OF_MEMORY", "BETTER"),
        ("UNSUPPORTED", "OUT_OF_MEMORY", "CHANGED"),
        ("UNSUPPORTED", "UNSUPPORTED", "NOT TIMED"),
    ],
)
def test_a_changed_status_is_no_ratio(row, before, after, word):
    def run(status):
        return Measured([row("dma/flex", total_ms=1.0 if status == "PASSED" else None, status=status)], {})

    (cell,) = compare(run(before), run(after)).cells
    assert cell.verdict == word and cell.ratio is None
    assert cell.regressed(0.05) == (word == "WORSE")
    assert (cell.a_ms, cell.b_ms) == (1.0 if before == "PASSED" else None, 1.0 if after == "PASSED" else None)


def test_cells_are_matched_by_what_they_measure(make_run):
    a = make_run({at("dma/flex", 1024): [1.0] * 6, at("dma/flex", 2048): [2.0] * 6})
    b = make_run({at("dma/flex", 1024, seed=7, device="H200"): [1.0] * 6, at("dense/sdpa-flash", 2048): [2.0] * 6})
    comparison = compare(a, b)
    assert [cell.verdict for cell in comparison.cells] == ["SAME"]
    assert [row["seqlen"] for row in comparison.only_a] == [2048]
    assert [row["function"] for row in comparison.only_b] == ["dense"]


def test_a_cell_measured_twice_counts_as_it_was_last(make_run, row):
    a = make_run({"dma/flex": [1.0] * 6})
    a.rows.insert(0, row("dma/flex", total_ms=None, status="TIMEOUT"))
    assert [cell.verdict for cell in compare(a, make_run({"dma/flex": [1.0] * 6})).cells] == ["SAME"]


def test_each_time_is_compared_by_its_own_samples(row):
    def run(gpu, wall, plan):
        one, dense = row("dma/flex"), row("dense/sdpa-flash")
        kept = {"gpu_ms": [gpu] * 6, "wall_ms": [wall] * 6}
        return Measured([one, dense], {one["cell"]: {**kept, "plan_ms": [plan] * 6}, dense["cell"]: kept})

    a, b = run(1.0, 0.5, 0.1), run(1.0, 2.0, 0.2)
    found = {time: compare(a, b, time).cells for time in ("gpu", "wall", "total", "plan", "kernel")}
    assert [cells[0].ratio.value for cells in found.values()] == pytest.approx([1.0, 4.0, 2.0, 2.0, 1.0])
    assert [cells[0].b_ms for cells in found.values()] == [1.0, 2.0, 2.0, 0.2, 1.0]
    assert found["plan"][1].verdict == "NOT TIMED"  # dense attention has no plan


def test_on_a_cpu_device_time_is_wall_time(row):
    one = row("dma/flex", gpu_ms=None)
    run = Measured([one], {one["cell"]: {"gpu_ms": [], "wall_ms": [3.0] * 6}})
    assert compare(run, run).cells[0].a_ms == 3.0


def test_a_time_without_samples_has_no_interval(row, make_run, manifest):
    bare = Measured([row("dma/flex", total_ms=2.0)], {})
    comparison = compare(make_run({"dma/flex": [1.0] * 6}), bare)
    (cell,) = comparison.cells
    assert (cell.verdict, cell.a_ms, cell.b_ms, cell.ratio) == ("UNSURE", 1.0, 2.0, None)
    assert "have no samples stored" in " ".join(doubts(manifest(), manifest(), comparison, "gpu"))


def test_dense_cells_tell_how_steady_the_machine_was(make_run, manifest):
    """The same code took up to 40% more or less: 10% more of ours says nothing then, unless machines differ anyway."""
    factors = [1.4, 0.7, 1.2, 0.8, 1.3, 0.75]
    names = [at("dense/sdpa-flash", 1024 * (n + 1)) for n in range(len(factors))]
    a = make_run({"dma/flex": [1.0] * 8} | {name: [1.0] * 8 for name in names})
    b = make_run({"dma/flex": [1.1] * 8} | {name: [by] * 8 for name, by in zip(names, factors, strict=True)})
    unsteady = compare(a, b)
    assert {cell.verdict for cell in unsteady.cells} == {"UNSURE"} and unsteady.drift > 0.2
    assert "the machine was not steady" in " ".join(doubts(manifest(), manifest(), unsteady, "gpu"))
    assert compare(a, b, alike=False).cells[0].verdict == "SLOWER"


def test_drift_is_what_intervals_do_not_explain():
    wide = [Estimate(0.05 * sign, 0.05 * sign - 0.2, 0.05 * sign + 0.2) for sign in (1, -1, 1, -1, 1)]
    assert controls_drift(wide) == 0.0
    narrow = [Estimate(0.05 * sign, 0.05 * sign, 0.05 * sign) for sign in (1, -1, 1, -1, 1)]
    assert controls_drift(narrow) == pytest.approx(1.4826 * 0.05)
    assert controls_drift(narrow[:4]) == 0.0  # too few to tell


def test_the_table_fits_and_says_what_changed(make_run, row):
    cells = {
        at("dense/sdpa-efficient", 131072 // n, batch=16 * n, heads=16 * n, kv_heads=4 * n, head_dim=64 * n, 
           window=2048 // n, dtype=dtype, **{"pass": pass_}): [1234.0] * 6
        for n, dtype, pass_ in ((1, "bf16", "fwd+bwd"), (2, "fp32", "fwd"))
    }  # fmt: skip
    b = make_run(cells)
    b.rows[0] |= {"status": "OUT_OF_MEMORY", "reason": "needs 128 GiB"}
    comparison = compare(make_run(cells), b)
    shown = layout(comparison, "gpu", width=100)
    widths = [max(map(len, column)) for column in zip(shown.headers, *shown.cells, strict=True)]
    assert sum(widths) + len(widths) - 1 <= 100
    assert "left out to fit 100 columns: interval (all of it: --json)" in shown.notes
    assert shown.cells[0][shown.headers.index("B ms")] == "OUT_OF_MEMORY[1]" and "[1] needs 128 GiB" in shown.notes
    assert "interval" in layout(comparison, "gpu").headers and shown.caption.startswith("device time · ")
    assert regressions([comparison.cells[0]]) == [
        "PASSED -> OUT_OF_MEMORY: dense/sdpa-efficient (fwd+bwd; T 131072; w 2048)"
    ]


def test_native_sparse_attention_with_the_settings_of_its_paper_is_marked(make_run):
    run = make_run({at("nsa/fla", window=1024): [1.0] * 6, at("nsa/fla", window=None): [2.0] * 6})
    shown = layout(compare(run, run), "gpu")
    assert [cells[0] for cells in shown.cells] == ["nsa/fla", "nsa/fla*"]
    assert "* the paper's settings" in " ".join(shown.notes)


def test_sums_count_verdicts_and_average_ratios_by_function(make_run):
    a = make_run({"dma/flex": [1.0] * 8, "dense/sdpa-flash": [1.0] * 8, at("swa/flex", 99): [1.0] * 8})
    b = make_run({"dma/flex": [4.0] * 8, "dense/sdpa-flash": [1.0] * 8})
    comparison = compare(a, b)
    assert sums(comparison) == [
        "2 cells in both: 1 SAME, 1 SLOWER.",
        "Geometric mean of B/A: 2.000 (dma 4.000, dense 1.000).",
        "Only in A, 1 cell: swa/flex (fwd; T 99; w 1024).",
    ]
    assert regressions([cell for cell in comparison.cells if cell.regressed(0.05)]) == [
        "slower by 300% at most: dma/flex (fwd; T 8192; w 1024)"
    ]
    told = cell_as_json(comparison.cells[0], 0.05)
    assert told["verdict"] == "SLOWER" and told["regressed"] and told["ratio_low"] < told["ratio"] == pytest.approx(4)
    assert cell_as_json(comparison.cells[1], None)["regressed"] is None


@pytest.fixture
def manifest(environment):
    """manifest(**changes): of a finished run; a change of `versions`, `gpus` or `git` goes into its environment."""

    def make(**changes):
        inner = {key: changes.pop(key) for key in ("versions", "gpus", "git") if key in changes}
        settings = {"device": "cuda", "seed": 0} | changes.pop("settings", {})
        return {"environment": environment | inner, "settings": settings, "status": "finished"} | changes

    return make


def test_what_was_not_the_same_is_said(manifest, make_run):
    run = make_run({"dma/flex": [1.0] * 8})
    comparison = compare(run, run)
    assert doubts(manifest(), manifest(), comparison, "gpu") == []
    h200 = [{"name": "NVIDIA H200", "uuid": "GPU-2", "driver": "580.2"}]
    other = manifest(
        gpus=h200, versions={"dmabench": "9", "torch": "2.12.0", "triton": "3.6.0", "numpy": "2.4.0"},
        settings={"replay": True, "hopper": "none"}, status="interrupted", git={"sha": "f" * 40, "dirty": True},
    )  # fmt: skip
    assert differences(manifest(), other) == [
        "device: NVIDIA H100 80GB HBM3 -> NVIDIA H200",
        "driver: 580.1 -> 580.2",
        "torch: 2.11.0 -> 2.12.0",
        "--replay: no -> yes",
        "DMABENCH_HOPPER: as usual -> none",
    ]
    told = " ".join(doubts(manifest(), other, comparison, "gpu"))
    assert "more than the code differs" in told and "torch: 2.11.0 -> 2.12.0" in told
    assert "B did not finish (interrupted)" in told and "B was measured with changes that are in no commit" in told
    second = manifest(gpus=[{"name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-2", "driver": "580.1"}])
    assert "two cards of one kind" in " ".join(doubts(manifest(), second, comparison, "gpu"))


def test_clocks_and_throttling_are_said(manifest, make_run):
    run = make_run({"dma/flex": [1.0] * 8})
    fast, slow = ({"after": [{"sm_mhz": mhz, "throttled": mhz < 1500}]} for mhz in (1980.0, 1410.0))
    told = doubts(manifest(gpu_state=fast), manifest(gpu_state=slow), compare(run, run), "gpu")
    assert told == ["a GPU was throttled when B ended", "clocks when they ended: 1980 -> 1410 MHz"]


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_is_one_of_its_cpu(manifest):
    cpu = manifest(settings={"device": "cpu"})
    assert "device: NVIDIA H100 80GB HBM3 -> Some CPU" in differences(manifest(), cpu)


def test_the_smallest_difference_is_above_what_drift_makes():
    assert math.log1p(SMALLEST) >= 2.9 * math.sqrt(2) * DRIFT
