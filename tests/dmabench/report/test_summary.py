"""The five sentences, from rows made up for the test: every number in them can be told in advance."""

import pytest

from dmabench.claims.verdicts import Verdict, load_claims, verdicts
from dmabench.report import summary as summary_module
from dmabench.report.reading import Stored
from dmabench.report.summary import sentences
from dmabench.tasks.task import Axis

TOPICS = ["Kernels", "Recall", "Needles", "Language", "Claims"]


@pytest.fixture
def of(environment, trained, monkeypatch):
    """(command, rows, **manifest) -> a run."""
    language = trained.task("train", "Language", (Axis("seqlen", int, ""),), 0.0)
    tasks = {"mqar": trained.MQAR, "needle": trained.NEEDLE, "train": language}
    monkeypatch.setattr(summary_module.registry, "get", tasks.__getitem__)

    def make(command, rows, name="r", **manifest):
        manifest = {"command": command, "environment": environment, "started": "2026-01-01", **manifest}
        return Stored(name, None, manifest, [{**row, "run": name} for row in rows], [])

    return make


def told(*runs, judged=()):
    """Topic -> its sentence in Markdown; there are always five, each one sentence."""
    found = sentences(runs, judged or verdicts(load_claims(), []))
    assert [one.topic for one in found] == TOPICS
    for one in found:
        line = one.markdown()
        assert line.endswith(".") and "\n" not in line
        assert bool(one.command) == one.text.endswith(":")
    return {one.topic: one.markdown() for one in found}


def test_without_rows_every_sentence_says_so_and_how_to_get_them():
    found = told()
    commands = ("dmabench kernels --preset h100", "dmabench mqar --pairs 512", "dmabench needle --extrapolate")
    commands += ("dmabench train --data synthetic && dmabench eval --tasks sample", "dmabench list claims")
    assert all(f"`{command}" in found[topic] for topic, command in zip(TOPICS, commands, strict=True))


def test_kernels_tell_the_speed_up_at_each_length_and_where_it_loses(of, row):
    lengths = ((8192, 1.0, 2.0), (32768, 16.0, 4.0), (131072, 256.0, 16.0))
    rows = [row("dense/sdpa-cudnn", length, dense) for length, dense, _ in lengths]
    rows += [row("dma/cuda", length, ours) for length, _, ours in lengths]
    rows += [row("dma/flex", length, 2 * ours) for length, _, ours in lengths]
    # The definition is no backend that anybody would choose, and says nothing about where DMA loses.
    rows += [row("dma/reference", 8192, 100.0)]
    text = told(of("kernels", rows))["Kernels"]
    assert (
        "DMA's forward is 0.500, 4.00 and 16.0 times as fast as the fastest dense backend at T 8k, 32k and 128k" in text
    )
    assert "(w 1k, commit 0123456)" in text and "on NVIDIA H100 80GB HBM3" in text
    assert (
        "slower in 2 of 6 timed cells, all at T up to 8k and most of all dma/flex, forward, T 8k, w 1k (0.250x)" in text
    )


def test_kernels_of_two_machines_are_told_apart_and_runs_of_one_are_not_mixed(of, row):
    def cells(ms, **fields):
        return [row("dense/sdpa-cudnn", 8192, 8.0, **fields), row("dma/cuda", 8192, ms, **fields)]

    early = of("kernels", cells(2.0), name="early", started="2026-01-01")
    late = of("kernels", cells(4.0), name="late", started="2026-01-02")
    other = of("kernels", cells(1.0, device="NVIDIA A100"), name="other")
    text = told(early, late, other)["Kernels"]
    assert "on NVIDIA H100 80GB HBM3, DMA's forward is 2.00 times" in text  # the later one, not the mean of both
    assert "on NVIDIA A100, DMA's forward is 8.00 times" in text and text.count("slower in none of") == 2


def test_recall_is_told_of_the_longest_setting_whose_control_has_learned(of, trained):
    def rows(seqlen, control, **fields):
        shares = (("mha", control), ("dma", 0.8), ("swa", 0.3))
        return [
            trained.made_up(trained.MQAR, kind, share, seqlen=seqlen, window=512, **fields) for kind, share in shares
        ]

    text = told(of("mqar", rows(2048, 0.99) + rows(8192, 0.4)))["Recall"]
    assert "at T 2k" in text and "DMA (w 512) 0.800, MHA 0.990 and SWA (w 512) 0.300" in text and "1 seed" in text
    text = told(of("mqar", rows(8192, 0.4)))["Recall"]
    assert "MHA itself has not learned it" in text and "0.800" not in text
    alone = [one for one in rows(2048, 0.99) if one["attention"] != "dma"]
    assert "none of MHA and dma alike" in told(of("mqar", alone))["Recall"]


def test_needles_tell_what_is_left_beyond_the_trained_length(of, trained):
    rows = [
        trained.made_up(trained.NEEDLE, kind, share, test_len=length)
        for kind, inside, outside in (("mha", 0.99, 0.2), ("dma", 0.95, 0.9))
        for length, share in ((1024, inside), (2048, outside), (8192, outside))
    ]
    text = told(of("needle", rows))["Needles"]
    assert "trained at 1k: at trained lengths and beyond, up to 8k" in text
    assert "DMA (w 64) 0.950 and 0.900 and MHA 0.990 and 0.200 are found" in text
    text = told(of("needle", [{**one, "accuracy": 0.3} for one in rows]))["Needles"]
    assert "UNDERTRAINED" in text and "0.900" not in text


def test_language_and_benchmarks_share_a_sentence_that_says_which_is_missing(of, trained, monkeypatch):
    task = summary_module.registry.get("train")
    rows = [
        trained.made_up(task, kind, 0.5, seqlen=1024, bits_per_byte=1.0, test_loss=loss)
        for kind, loss in (("mha", 2.0), ("dma", 1.0))
    ]
    text = told(of("train", rows))["Language"]
    assert "held-out perplexity is DMA (w 64) 2.718 and MHA 7.389" in text
    assert "no benchmark was scored; this does: `dmabench eval --tasks sample`." in text
    score = {"status": "PASSED", "task": "arc_easy", "shots": 0, "metric": "acc", "model": "mine", "model_name": "mine"}
    scored = of("eval", [{**score, "value": 0.5}, {**score, "task": "piqa", "value": 0.7}], name="e")
    text = told(of("train", rows), scored)["Language"]
    assert "on 2 benchmarks mine 60.0 percent, the mean of 2 scores" in text and "`" not in text
    text = told(scored)["Language"]
    assert "no run here trained a language model" in text and "`dmabench train --data synthetic`" in text


def test_claims_are_counted_once_each():
    known = load_claims()[:4]
    verdict = {"device": "d", "detail": ""}
    judged = [Verdict(known[0], "HOLDS", run="a", **verdict), Verdict(known[0], "FAILS", run="b", **verdict)]
    judged += [Verdict(known[1], "HOLDS", run="a", **verdict), Verdict(known[1], "HOLDS", run="b", **verdict)]
    judged += [Verdict(known[2], "NO_ROWS", ""), Verdict(known[3], "NOT_TESTABLE", "")]
    text = told(judged=judged)["Claims"]
    assert "4 registered claims are 1 HOLDS, 1 NOT_TESTABLE, 1 that differ between runs and 1 NO_ROWS" in text
    assert "`" not in told(judged=judged[:4])["Claims"]


def test_a_task_that_cannot_be_loaded_is_said(of, trained, monkeypatch):
    def gone(name):
        raise ImportError(name)

    run = of("mqar", [trained.made_up(trained.MQAR, "mha", 0.9)])
    monkeypatch.setattr(summary_module.registry, "get", gone)
    assert "cannot be loaded (ImportError)" in told(run)["Recall"]
