"""Charts and notes of models of several sizes, from rows made up for the test."""

import math

import pytest

from dmabench.charts import tasks as task_charts
from dmabench.summaries.scaling import fits_of, leads_of, scaling_notes
from dmabench.tasks import registry

SIZES = {"7M": 7e6, "13M": 13e6, "30M": 30e6}


@pytest.fixture(scope="module")
def task():
    return registry.get("scaling")


def rows(sizes=SIZES, seeds=2, **fields):
    """Losses that fall as N^-0.1; DMA's lead is 0.01 log(N)."""
    return [
        {
            **{"task": "scaling", "status": "PASSED", "run": "r", "device": "Made-up GPU", "attention": kind},
            **{"size": size, "seed": seed, "lr": 1e-3, "parameters": count, "train_flops": count * 1e10},
            **{"test_loss": loss, "validation_loss": loss, "accuracy": 0.3, "window": 512 if kind == "dma" else None},
            **{"bits_per_byte": 1.0, "perplexity": math.exp(loss)},
            **fields,
        }
        for size, count in sizes.items()
        for kind in ("mha", "dma")
        for seed in range(seeds)
        for loss in [20 * count**-0.1 * (1 + 0.001 * seed) - (0.01 * math.log(count) if kind == "dma" else 0)]
    ]


def test_exponents_and_leads_are_those_of_the_rows(task):
    for measure in ("parameters", "train_flops"):
        assert fits_of(task, rows(), measure)["mha"].exponent.value == pytest.approx(0.1)
    lead = leads_of(task, rows())["mha"]
    assert lead.slope.value == pytest.approx(0.01, rel=1e-6) and len(lead.points) == 6 and lead.over == "2 seeds"


def test_a_rate_that_validation_did_not_choose_is_left_out(task):
    wild = [{**row, "lr": 1e-2, "test_loss": 1.0, "validation_loss": 9.0} for row in rows()]
    assert fits_of(task, rows() + wild, "parameters")["mha"].exponent.value == pytest.approx(0.1)


def test_notes_tell_fits_and_slopes_or_what_they_need(task):
    told = " ".join(scaling_notes(task, rows()))
    assert "mha 0.100 (0.100 to 0.100)" in told and "lead of dma over mha" in told and "0.0100" in told
    assert scaling_notes(task, rows({"7M": 7e6})) == ["a fit needs three sizes (--size)"]
    assert scaling_notes(task, [{"task": "train", "status": "PASSED"}]) == []


def test_two_panels_of_loss_and_one_of_leads(task):
    figures = task_charts.draw(task, rows(), {"commit": "0123456"})
    assert list(figures) == ["scaling-loss", "scaling-lead"]
    over_size, over_flops = figures["scaling-loss"].axes
    labels = [text.get_text() for text in over_size.get_legend().get_texts()]
    assert len(labels) == 2 and labels[0].startswith("mha 0.100") and labels[1].startswith("dma")
    assert over_flops.get_xlabel() == "training FLOPs" and over_size.get_xscale() == "log"
    (lead,) = figures["scaling-lead"].axes
    assert "over mha" in lead.get_legend().get_texts()[0].get_text()


def test_two_sizes_are_drawn_without_a_fit(task):
    figures = task_charts.draw(task, rows({"7M": 7e6, "13M": 13e6}), {})
    assert [text.get_text() for text in figures["scaling-loss"].axes[0].get_legend().get_texts()] == ["mha", "dma"]
