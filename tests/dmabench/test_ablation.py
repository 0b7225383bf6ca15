"""Charts and the claim of ablations, from rows made up for the test."""

import pytest

from dmabench.charts import tasks as task_charts
from dmabench.claims.verdicts import load_claims, verdicts
from dmabench.summaries.task_layout import sheets
from dmabench.tasks import registry

TOKENS = (128, 256)


@pytest.fixture(scope="module")
def task():
    return registry.get("ablate")


def row(variant, loss, seed=0, overlap=None, tested="own", on="language", **fields):
    told = {"task": "ablate", "status": "PASSED", "run": "r", "device": "Made-up GPU", "on": on, "variant": variant}
    told |= {"tested": tested, "seed": seed, "lr": 1e-3, "window": 32, "seqlen": 128, "test_loss": loss}
    told |= {"validation_loss": loss, "accuracy": 0.3, "attention": variant if variant in ("mha", "swa") else "dma"}
    if overlap is not None:
        told |= {"overlap": overlap, "overlap_untrained": 0.5, "overlap_chance": 0.2, "age": 40.0}
        told |= {"mask_tokens": list(TOKENS), "mask_age": [40, 80], "mask_overlap": [overlap, overlap / 2]}
    return told | fields


def heads(*overlaps, loss=3.0, control=3.0):
    rows = [row("v-learned", loss, seed, overlap) for seed, overlap in enumerate(overlaps)]
    return rows + [row("mha", control, seed) for seed in range(len(overlaps))]


@pytest.mark.parametrize(
    ("rows", "verdict", "words"),
    [
        (heads(0.3, 0.4, 0.5), "HOLDS", "overlap 0.300 to 0.500"),
        (heads(0.97, 0.99, 1.0), "FAILS", "by chance 0.200"),
        (heads(0.3, 0.4, 0.99), "NOT_SEPARATED", "3 seeds"),
        (heads(0.3, 0.4), "NOT_SEPARATED", "2 seeds"),
        (heads(0.3, 0.3, 0.3, loss=3.2), "NOT_SEPARATED", "its loss is 3.2, the control's 3"),
        (heads(0.3, 0.3, 0.3)[:3], "NOT_SEPARATED", "no mha"),
        ([row("v-learned", 3.0), row("mha", 3.0)], "NOT_SEPARATED", "one key/value head"),
        ([row("constant", 3.0, overlap=1.0), row("mha", 3.0)], "NO_ROWS", "v-learned"),
    ],
)
def test_heads_are_distinct(rows, verdict, words):
    (claim,) = (claim for claim in load_claims() if claim.id == "function-heads-distinct")
    (found,) = verdicts([claim], rows)
    assert found.verdict == verdict and words in found.detail


def test_rows_of_other_tests_are_no_models_of_their_own():
    (claim,) = (claim for claim in load_claims() if claim.id == "function-heads-distinct")
    extra = [row("v-learned", 3.0, seed, tested="mha") for seed in range(3)]
    (found,) = verdicts([claim], heads(0.3, 0.4, 0.5) + extra)
    assert found.verdict == "HOLDS" and "left out" not in found.detail


def test_a_line_for_each_variant_and_panels_of_masks(task):
    rows = [row("v-learned", 3.0 + seed / 100, seed, 0.4) for seed in range(2)]
    rows += [row("mha", 2.9, seed) for seed in range(2)] + [row("v-learned", 3.5, tested="mha")]
    figures = task_charts.draw(task, rows, {"commit": "0123456"})
    assert list(figures) == ["ablate-language-score", "ablate-language-masks"]
    (axes,) = figures["ablate-language-score"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["v-learned", "mha"]
    own = next(line for line in axes.lines if line.get_label() == "its own")
    assert list(own.get_xdata()) == pytest.approx([3.005, 2.9])
    age, overlap = figures["ablate-language-masks"].axes
    assert list(age.lines[0].get_ydata()) == [40, 80] and list(overlap.lines[0].get_ydata()) == [0.4, 0.2]


def test_recall_is_drawn_by_its_accuracy_and_apart(task):
    rows = [row("v-learned", 3.0, overlap=0.4), row("v-learned", 0.1, overlap=0.4, on="mqar", accuracy=0.9)]
    figures = task_charts.draw(task, rows, {})
    assert set(figures) == {f"ablate-{on}-{what}" for on in ("language", "mqar") for what in ("score", "masks")}
    assert figures["ablate-mqar-score"].axes[0].get_xlabel() == "accuracy (test)"


def test_text_and_recall_stand_in_tables_of_their_own(task):
    """In one, the settings that only one has would leave no room for what was measured."""
    sizes = {"size": "tiny", "data": "synthetic", "tokens": 1e5, "chance": 0.002}
    rows = [row(variant, 3.0, overlap=0.4, **sizes) for variant in ("v-learned", "mha")]
    sizes = {"pairs": 16, "d_model": 64, "steps": 100, "window": 16, "chance": 0.06}
    rows += [row(variant, 0.1, on="mqar", **sizes) for variant in ("v-learned", "mha")]
    text, recall = sheets(task, rows, 100)
    assert {"variant", "test loss", "overlap"} <= set(text.headers) and not {"pairs", "on"} & set(text.headers)
    assert {"variant", "test loss", "w/pairs"} <= set(recall.headers) and "pairs 16" in recall.title
    assert [len(one.cells) for one in (text, recall)] == [2, 2]
