"""Verdicts about trained models, on rows made up for the test."""

from importlib import import_module

import pytest

from dmabench.claims.verdicts import load_claims, verdicts
from dmabench.tasks import registry


@pytest.fixture(autouse=True)
def made_up_tasks(trained, monkeypatch):
    tasks = {"mqar": trained.MQAR, "patterns": trained.PATTERNS, "needle": trained.NEEDLE}
    monkeypatch.setattr(registry, "get", tasks.__getitem__)


@pytest.fixture(scope="module")
def judge():
    """(claim id, rows) -> the one verdict."""
    claims = {claim.id: claim for claim in load_claims()}

    def one(claim_id, rows):
        (found,) = verdicts([claims[claim_id]], rows)
        return found

    return one


@pytest.fixture
def recall(trained):
    """(seqlen, seeds, **accuracy by attention) -> rows of mqar with 512 pairs and window 512, 32,000 answers each."""

    def rows(seqlen=2048, seeds=3, jitter=0.002, fields=None, **accuracies):
        accuracies = {"mha": 0.99, "swa": 0.3, "mla": 0.5, "nsa": 0.6, "dma": 0.8} | accuracies
        return [
            trained.made_up(
                trained.MQAR,
                kind,
                accuracy + jitter * (seed - 1),
                seqlen=seqlen,
                window=512,
                seed=seed,
                total=32_000,
                **(fields or {}),
            )
            for kind, accuracy in accuracies.items()
            if accuracy is not None
            for seed in range(seeds)
        ]

    return rows


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.63, "HOLDS"), (0.601, "FAILS"), (0.5, "FAILS"), (0.612, "NOT_SEPARATED")]
)
def test_a_lead_must_be_above_the_margin(judge, recall, accuracy, verdict):
    found = judge("mqar-ahead-2048", recall(dma=accuracy, jitter=0.0005))
    assert found.verdict == verdict and "against nsa" in found.detail


def test_the_lead_is_over_the_best_of_the_others_and_mha_is_none_of_them(judge, recall):
    assert judge("mqar-ahead-2048", recall(mha=0.999)).verdict == "HOLDS"
    assert "against mla 16" in judge("mqar-ahead-2048", recall(mla=0.9)).detail
    assert judge("mqar-ahead-2048", recall(mla=0.9)).verdict == "FAILS"


def test_seeds_that_scatter_separate_nothing(judge, recall):
    rows = recall(jitter=0.002)
    for row, accuracy in zip([row for row in rows if row["attention"] == "dma"], (0.5, 0.7, 0.95), strict=True):
        row |= {"accuracy": accuracy, "correct": round(32_000 * accuracy)}
    assert judge("mqar-ahead-2048", rows).verdict == "NOT_SEPARATED"


def test_few_answers_separate_nothing_even_where_the_seeds_agree(judge, recall):
    rows = recall(dma=0.66, jitter=0)
    assert judge("mqar-ahead-2048", rows).verdict == "HOLDS"
    few = [{**row, "total": 200, "correct": round(200 * row["accuracy"])} for row in rows]
    assert judge("mqar-ahead-2048", few).verdict == "NOT_SEPARATED"


def test_too_few_seeds_give_no_verdict(judge, recall):
    found = judge("mqar-ahead-2048", recall(seeds=2))
    assert found.verdict == "NOT_SEPARATED" and "2 seeds, 3 needed" in found.detail
    assert judge("mqar-ahead-2048", recall(seeds=1)).verdict == "NOT_SEPARATED"


def test_an_undertrained_control_gives_no_verdict_and_its_reason(judge, recall):
    found = judge("mqar-ahead-2048", recall(mha=0.7))
    assert found.verdict == "NOT_SEPARATED" and "UNDERTRAINED: MHA itself reaches 0.700" in found.detail
    missing = judge("mqar-ahead-2048", recall(mha=None))
    assert missing.verdict == "NOT_SEPARATED" and "MHA was not run" in missing.detail


def test_an_undertrained_width_is_left_out_of_the_others(judge, recall):
    rows = recall(fields={"d_model": 128}) + recall(mha=0.5, dma=0.1, fields={"d_model": 32})
    found = judge("mqar-ahead-2048", rows)
    assert found.verdict == "HOLDS" and "left out, d 32: UNDERTRAINED" in found.detail


def test_widths_that_disagree_are_not_separated(judge, recall):
    rows = recall(fields={"d_model": 128}) + recall(dma=0.1, fields={"d_model": 64})
    found = judge("mqar-ahead-2048", rows)
    assert found.verdict == "NOT_SEPARATED" and "1 of 2 settings hold, 1 fail" in found.detail


def test_without_a_rival_dma_can_lose_but_not_win(judge, recall):
    ahead = judge("mqar-ahead-2048", recall(nsa=None))
    assert ahead.verdict == "NO_ROWS" and "not measured: nsa" in ahead.detail
    assert judge("mqar-ahead-2048", recall(nsa=None, dma=0.2)).verdict == "FAILS"


def test_other_windows_lengths_and_pairs_are_no_evidence(judge, recall):
    rows = [{**row, "window": row["window"] and 256} for row in recall()]
    assert judge("mqar-ahead-2048", rows).verdict == "NO_ROWS"
    assert judge("mqar-ahead-4096", recall(seqlen=2048)).verdict == "NO_ROWS"
    assert judge("mqar-ahead-2048", [{**row, "pairs": 128} for row in recall()]).verdict == "NO_ROWS"


def test_the_learning_rate_is_chosen_before_leads_are_taken(judge, recall):
    lucky = recall(dma=0.99, fields={"lr": 1e-2, "validation_accuracy": 0.1})
    assert judge("mqar-ahead-2048", recall(dma=0.3) + lucky).verdict == "FAILS"


def test_runs_are_judged_apart(recall):
    claims = [claim for claim in load_claims() if claim.id == "mqar-ahead-2048"]
    rows = [{**row, "run": "a"} for row in recall()] + [{**row, "run": "b"} for row in recall(dma=0.2)]
    assert [(one.run, one.verdict) for one in verdicts(claims, rows)] == [("a", "HOLDS"), ("b", "FAILS")]


@pytest.mark.parametrize(
    ("leads", "verdict"),
    [((0.05, 0.2, 0.3), "HOLDS"), ((0.3, 0.2, 0.1), "FAILS"), ((0.1, 0.3, 0.0), "NOT_SEPARATED")],
)
def test_the_lead_must_grow_to_both_long_lengths(judge, recall, leads, verdict):
    rows = [row for T, lead in zip((2048, 4096, 8192), leads, strict=True) for row in recall(T, dma=0.6 + lead)]
    found = judge("mqar-most-at-long", rows)
    assert found.verdict == verdict and "lead at 8k minus lead at 2k" in found.detail
    assert judge("mqar-most-at-long", [row for row in rows if row["seqlen"] != 8192]).verdict == "NO_ROWS"
    low = [{**row, "accuracy": 0.5} if row["attention"] == "mha" and row["seqlen"] == 2048 else row for row in rows]
    assert judge("mqar-most-at-long", low).verdict == "NOT_SEPARATED"


@pytest.mark.parametrize(
    ("ms", "verdict"),
    # 1 - DMA/MHA is above 0.85 below 1.5 ms; MHA/DMA - 1 is at most 0.85 from 5.41 ms on.
    [(1.4, "HOLDS"), (2.0, "NOT_SEPARATED"), (5.3, "NOT_SEPARATED"), (5.5, "FAILS"), (20.0, "FAILS")],
)
def test_inference_is_judged_by_both_readings(judge, recall, ms, verdict):
    rows = recall(4096, fields={"infer_batch": 8})
    rows = [{**row, "infer_ms": 10.0 if row["attention"] == "mha" else ms} for row in rows]
    found = judge("mqar-inference-85-percent", rows)
    assert found.verdict == verdict and "MHA/DMA - 1" in found.detail


def test_inference_takes_the_worst_seeds_and_equal_batches(judge, recall):
    rows = recall(4096, fields={"infer_batch": 8})
    rows = [{**row, "infer_ms": 10.0 if row["attention"] == "mha" else 1.3 + 0.2 * row["seed"]} for row in rows]
    assert judge("mqar-inference-85-percent", rows).verdict == "NOT_SEPARATED"
    other = [{**row, "infer_batch": 1} if row["attention"] == "mha" else row for row in rows]
    assert judge("mqar-inference-85-percent", other).verdict == "NO_ROWS"
    replayed = [{**row, "infer_replayed": row["attention"] == "dma"} for row in rows]
    assert judge("mqar-inference-85-percent", replayed).verdict == "NO_ROWS"
    short = [{**row, "seqlen": 2048} for row in rows]
    assert judge("mqar-inference-85-percent", short).verdict == "NO_ROWS"


@pytest.fixture
def needles(trained):
    """(beyond by attention, within by attention, **fields) -> rows at 1k (trained), 2k and 4k, 640 answers a length."""

    def rows(beyond, within=None, seeds=3, **fields):
        return [
            trained.made_up(
                trained.NEEDLE,
                kind,
                (within or {}).get(kind, 0.99) if tested == 1024 else value - 0.01 * (seed == 1),
                test_len=tested,
                depth=depth,
                seed=seed,
                total=320,
                **fields,
            )
            for kind, value in beyond.items()
            for seed in range(seeds)
            for tested in (1024, 2048, 4096)
            for depth in (0, 100)
        ]

    return rows


@pytest.mark.parametrize(
    ("dma", "verdict"), [(0.95, "HOLDS"), (0.62, "NOT_SEPARATED"), (0.59, "NOT_SEPARATED"), (0.3, "FAILS")]
)
def test_dma_must_lose_less_than_the_one_that_loses_least(judge, needles, dma, verdict):
    found = judge("needle-extrapolation", needles({"mha": 0.6, "nsa": 0.2, "dma": dma}))
    assert found.verdict == verdict and "loses less than mha by" in found.detail


def test_who_has_learned_little_has_little_to_lose(judge, needles):
    weak = judge("needle-extrapolation", needles({"mha": 0.6, "nsa": 0.3, "dma": 0.2}, within={"dma": 0.2}))
    assert weak.verdict == "NOT_SEPARATED" and "dma itself reaches 0.200" in weak.detail
    rival = judge("needle-extrapolation", needles({"mha": 0.6, "nsa": 0.3, "dma": 0.9}, within={"nsa": 0.3}))
    assert rival.verdict == "HOLDS" and "loses less than mha" in rival.detail
    control = judge("needle-extrapolation", needles({"mha": 0.6, "nsa": 0.3, "dma": 0.9}, within={"mha": 0.8}))
    assert control.verdict == "NOT_SEPARATED" and "UNDERTRAINED" in control.detail


def test_needles_in_text_do_not_count_since_their_seeds_are_of_haystacks(judge, needles):
    of_tokens = needles({"mha": 0.6, "nsa": 0.2, "dma": 0.9})
    of_text = [{**row, "haystack": "text", "model": row["attention"]} for row in of_tokens]
    assert judge("needle-extrapolation", of_text).verdict == "NO_ROWS"
    marked = [{**row, "haystack": "tokens"} for row in of_tokens]
    assert judge("needle-extrapolation", marked).verdict == "HOLDS"


def test_needles_need_both_rivals_and_lengths_beyond(judge, needles):
    rows = needles({"mha": 0.6, "dma": 0.9})
    assert judge("needle-extrapolation", rows).verdict == "NO_ROWS"
    rows = [row for row in needles({"mha": 0.6, "nsa": 0.2, "dma": 0.9}) if row["test_len"] == 1024]
    found = judge("needle-extrapolation", rows)
    assert found.verdict == "NO_ROWS" and "no length beyond training" in found.detail


@pytest.mark.parametrize(("dma", "verdict"), [(0.985, "HOLDS"), (0.9, "FAILS"), (0.97, "NOT_SEPARATED")])
def test_a_pattern_is_learned_where_dma_is_not_behind(judge, trained, dma, verdict):
    def rows(pattern, value):
        make = trained.made_up
        return [make(trained.PATTERNS, "mha", 0.99, pattern=pattern, seed=seed) for seed in range(3)] + [
            make(trained.PATTERNS, "dma", value + 0.003 * (seed - 1), pattern=pattern, seed=seed) for seed in range(3)
        ]

    found = judge("pattern-copy", rows("copy", dma) + rows("select", 0.1))
    assert found.verdict == verdict
    dense = [{**row, "window": row["window"] and 256} for row in rows("copy", dma)]
    told = judge("pattern-copy", dense)
    assert told.verdict == "NOT_SEPARATED" and "nothing is sparse" in told.detail


@pytest.mark.parametrize(
    ("accuracy", "predicted", "verdict"),
    [
        (0.99, "learns", "HOLDS"),
        (0.6, "learns", "FAILS"),
        (0.945, "learns", "NOT_SEPARATED"),
        (0.6, "fails", "HOLDS"),
        (0.99, "fails", "FAILS"),
    ],
)
def test_predictions_can_fail(judge, trained, accuracy, predicted, verdict):
    make, task = trained.made_up, trained.PATTERNS
    claim = {"learns": "prediction-dma-copies-with-room", "fails": "prediction-dma-fails-below-needed"}[predicted]
    rows = [make(task, "mha", 0.99, seed=seed, predicted="learns") for seed in range(3)]
    rows += [make(task, "dma", accuracy, seed=seed, predicted=predicted) for seed in range(3)]
    rows += [make(task, "dma", 0.5, seed=seed, predicted="open", window=100) for seed in range(3)]
    assert judge(claim, rows).verdict == verdict
    assert judge(claim, rows[:5]).verdict == "NOT_SEPARATED"
    low = [{**row, "accuracy": 0.5} if row["attention"] == "mha" else row for row in rows]
    assert judge(claim, low).verdict == "NOT_SEPARATED" and "UNDERTRAINED" in judge(claim, low).detail
    assert judge(claim, [row for row in rows if row.get("predicted") != predicted]).verdict == "NO_ROWS"


def test_every_rule_about_a_task_names_its_fields_and_words():
    axes = {
        name: {axis.name: axis for axis in import_module(f"dmabench.tasks.{name}").TASK.axes}
        for name in ("mqar", "patterns", "needle", "scaling", "ablate")
    }
    rules = [claim.rule for claim in load_claims() if claim.rule and "task" in claim.rule]
    assert len(rules) >= 9
    for rule in rules:
        for name, value in rule.get("where", {}).items():
            choices = axes[rule["task"]][name].choices
            assert not choices or set(value if isinstance(value, list) else [value]) <= set(choices)
        if rule["task"] == "ablate":
            assert {rule["variant"], rule["control"]} <= set(axes["ablate"]["variant"].choices)
        else:
            assert set(str(rule.get("others", "mha")).split(",")) <= set(axes[rule["task"]]["attention"].choices)
