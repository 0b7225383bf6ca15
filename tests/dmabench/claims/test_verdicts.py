import pytest

from dmabench.claims.verdicts import VERDICTS, load_claims, verdicts
from dmabench.errors import Refusal
from dmabench.summaries.reported import FIGURES, ratios, reported, reported_beside, reported_table


def judged(claim_id, rows):
    claims = [claim for claim in load_claims() if claim.id == claim_id]
    assert len(claims) == 1
    found = verdicts(claims, rows)
    assert all(one.verdict in VERDICTS for one in found)
    return found


@pytest.fixture
def pair(row):
    """(ratio, spread, **fields): dma/cuda and the paper's baseline, `ratio` times slower in kernel time."""

    def make(ratio, spread=0.01, **fields):
        def one(name, kernel):
            return row(
                name,
                total_ms=kernel,
                kernel_ms=kernel,
                p10_ms=kernel * (1 - spread),
                p90_ms=kernel * (1 + spread),
                **fields,
            )

        return [one("dma/cuda", 1.0), one("dma/sdpa-masked", ratio)]

    return make


def test_every_claim_is_complete_and_unique():
    claims = load_claims()
    assert len({claim.id for claim in claims}) == len(claims) > 45
    assert all(claim.command.startswith("dmabench ") for claim in claims)
    # A claim about trained models needs seeds; a rule that cannot be evaluated yet is at least there in words.
    assert all(
        claim.minimum_seeds >= 3 for claim in claims if claim.group.startswith(("Associative", "Language", "Needle"))
    )
    assert {one.verdict for one in verdicts(claims, [])} == {"NO_ROWS", "NOT_TESTABLE"}
    unmeasured = [one for one in verdicts(claims, []) if one.verdict == "NO_ROWS"]
    assert all(one.claim.command in one.detail for one in unmeasured)


@pytest.mark.parametrize(
    ("ratio", "spread", "verdict"),
    [(12.0, 0.01, "HOLDS"), (9.0, 0.01, "FAILS"), (10.1, 0.05, "NOT_SEPARATED"), (9.9, 0.05, "NOT_SEPARATED")],
)
def test_speed_verdicts_use_the_interval(pair, ratio, spread, verdict):
    rows = [one for seqlen in (8192, 16384, 32768) for one in pair(ratio, spread, seqlen=seqlen)]
    (found,) = judged("kernel-cuda-10x-most-protocol", rows)
    assert found.verdict == verdict, found.detail


def test_most_means_over_half_of_at_least_three(pair):
    rows = pair(12, seqlen=8192) + pair(12, seqlen=16384)
    (found,) = judged("kernel-cuda-10x-most-protocol", rows)
    assert found.verdict == "NO_ROWS" and "3 needed" in found.detail
    rows += pair(2, seqlen=32768)
    assert judged("kernel-cuda-10x-most-protocol", rows)[0].verdict == "HOLDS"
    rows += pair(2, seqlen=65536)
    assert judged("kernel-cuda-10x-most-protocol", rows)[0].verdict == "FAILS"


def test_up_to_means_one_long_setting(pair):
    assert judged("kernel-cuda-15x-long-protocol", pair(20, seqlen=8192))[0].verdict == "NO_ROWS"
    rows = pair(20, seqlen=32768) + pair(3, seqlen=65536)
    assert judged("kernel-cuda-15x-long-protocol", rows)[0].verdict == "HOLDS"


def test_the_two_baselines_are_judged_apart(pair, row):
    rows = [one for seqlen in (8192, 16384, 32768) for one in pair(12, seqlen=seqlen)]
    rows += [row("dense/sdpa-cudnn", seqlen, 1.5) for seqlen in (8192, 16384, 32768)]
    assert judged("kernel-cuda-10x-most-protocol", rows)[0].verdict == "HOLDS"
    assert judged("kernel-cuda-10x-most-dense", rows)[0].verdict == "FAILS"


def test_a_row_that_did_not_pass_is_no_evidence(pair):
    rows = [one for seqlen in (8192, 16384, 32768) for one in pair(12, seqlen=seqlen)]
    rows[0]["status"] = "INCORRECT"
    assert judged("kernel-cuda-10x-most-protocol", rows)[0].verdict == "NO_ROWS"


def test_layers_are_no_evidence_about_kernels(pair):
    rows = [one for seqlen in (8192, 16384, 32768) for one in pair(12, seqlen=seqlen)]
    assert judged("kernel-cuda-10x-most-protocol", rows)[0].verdict == "HOLDS"
    layers = [{**one, "level": "layer"} for one in rows]
    assert judged("kernel-cuda-10x-most-protocol", layers)[0].verdict == "NO_ROWS"
    assert reported_beside(layers) == []


def test_figures_need_their_shape_their_device_and_every_length(pair):
    shape = {"heads": 32, "kv_heads": 8, "head_dim": 128, "window": 1024, "dtype": "bf16"}
    on_h100 = [one for seqlen in (8192, 16384, 32768) for one in pair(30, seqlen=seqlen, **shape)]
    assert judged("kernel-fig7-forward-protocol", on_h100)[0].verdict == "NO_ROWS"
    on_a100 = [{**one, "device": "NVIDIA A100-SXM4-80GB"} for one in on_h100]
    assert judged("kernel-fig7-forward-protocol", on_a100)[0].verdict == "HOLDS"
    (partly,) = judged("kernel-fig7-forward-protocol", on_a100[:4])
    assert partly.verdict == "NO_ROWS" and "not measured: T 32768" in partly.detail


def test_runs_are_judged_apart(pair):
    rows = []
    for run, ratio in (("one", 12), ("two", 3)):
        rows += [{**one, "run": run} for seqlen in (8192, 16384, 32768) for one in pair(ratio, seqlen=seqlen)]
    found = judged("kernel-cuda-10x-most-protocol", rows)
    assert [(one.run, one.verdict) for one in found] == [("one", "HOLDS"), ("two", "FAILS")]


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "HOLDS"), (2.0, "FAILS"), (1.15, "NOT_SEPARATED")])
def test_linear_growth(row, power, verdict):
    names = ("dma/cuda", "dma/triton", "dma/flex")
    rows = [row(name, seqlen, (seqlen / 8192) ** power) for name in names for seqlen in (8192, 32768, 131072)]
    (found,) = judged("kernel-linear-in-length", rows)
    assert found.verdict == verdict, found.detail
    # Two backends missing: one that fails is enough to fail "all three", one that holds is not enough to hold.
    partly = judged("kernel-linear-in-length", rows[:3])[0].verdict
    assert partly == ("FAILS" if verdict == "FAILS" else "NO_ROWS")


def test_exactness_fails_with_one_incorrect_row(row):
    rows = [row("dma/flex", **{"pass": name}) for name in ("fwd", "bwd")]
    assert judged("function-skipping-is-exact", rows)[0].verdict == "HOLDS"
    assert judged("function-skipping-is-exact", rows[:1])[0].verdict == "NO_ROWS"
    rows.append(row("dma/triton", status="INCORRECT"))
    assert judged("function-skipping-is-exact", rows)[0].verdict == "FAILS"
    # Neither the yardstick nor the masked baseline skips anything.
    no_skipping = [
        row(f"dma/{name}", **{"pass": which}) for name in ("reference", "sdpa-masked") for which in ("fwd", "bwd")
    ]
    assert judged("function-skipping-is-exact", no_skipping)[0].verdict == "NO_ROWS"


def test_reported_figures_are_kept_and_their_ratios_right():
    assert reported()["pretrain_1_7B"]["zero_shot"]["DMA"][-1] == 46.5
    by_series = {(one.name, one.series): ratios(one) for one in FIGURES}
    assert by_series["v6_fig7", "backward"] == {8192: 2.5, 16384: 4.4, 32768: 7.9}
    assert by_series["v1_chart", "flex"][32768] == pytest.approx(126.30 / 8.12)
    assert by_series["repository_a100_w1024", "cuda"][8192] == pytest.approx(9.38 / 0.36)


def test_reported_beside_shows_both_ways_of_counting(row):
    shape = {"heads": 32, "kv_heads": 8, "window": 1024}
    rows = [
        row("dma/flex", 8192, 1.0, kernel_ms=0.5, **shape),
        row("dma/sdpa-masked", 8192, 6.0, kernel_ms=5.0, **shape),
        row("dense/sdpa-cudnn", 8192, 2.0, heads=32, kv_heads=8),
    ]
    (one,) = reported_beside(rows)
    assert (one["figure"], one["backend"], one["reported"]) == ("v6_fig7", "dma/flex", 26.1)
    assert (one["ratio_masked"], one["ratio_dense"]) == (10.0, 2.0)
    assert reported_table(rows).row_count == 1
    assert reported_table([row("dma/flex", 4096, heads=32, kv_heads=8)]) is None


GOOD = (
    "id: a, source: s, statement: s, metric: m, command: dmabench kernels, "
    "margin: 0, minimum_seeds: 1, validity: v, verdict: v"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"schema: 1\ngroups: [{{title: t, claims: [{{{GOOD}}}, {{{GOOD}}}]}}]", "two claims with the id 'a'"),
        (f"schema: 1\ngroups: [{{title: t, claims: [{{{GOOD}, colour: red}}]}}]", "unknown keys: colour"),
        ("schema: 1\ngroups: [{title: t, claims: [{id: a}]}]", "lacks source, statement"),
        (
            f"schema: 1\ngroups: [{{title: t, claims: [{{{GOOD}, rule: {{kind: hope}}}}]}}]",
            "one of speedup, exponent, passed",
        ),
        (
            f"schema: 1\ngroups: [{{title: t, claims: [{{{GOOD}, rule: {{kind: passed, function: dma}}}}]}}]",
            "lacks passes",
        ),
        (
            f"schema: 1\ngroups: [{{title: t, claims: [{{{GOOD.replace('margin: 0', 'margin: wide')}}}]}}]",
            "margin is 'wide'",
        ),
        (f"schema: 2\ngroups: [{{title: t, claims: [{{{GOOD}}}]}}]", "update dmabench"),
        ("schema: 1\ngroups: nothing", "no list `groups`"),
        ("schema: [1", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, words):
    file = tmp_path / "claims.yaml"
    file.write_text(text)
    with pytest.raises(Refusal) as refusal:
        load_claims(file)
    assert words in str(refusal.value) and "claims.yaml" in str(refusal.value)
