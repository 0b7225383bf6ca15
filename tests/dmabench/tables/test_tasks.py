import re
from dataclasses import replace

import pytest
from rich.console import Console

from dmabench.statistics.intervals import wilson
from dmabench.summaries.task_layout import sheets
from dmabench.summaries.tasks import extrapolation, summaries
from dmabench.tables.tasks import notes, tables


def printed(task, rows, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(task, rows, width):
        console.print(table)
    return console.export_text()


def line(text, *words):
    (found,) = [one for one in text.splitlines() if all(re.search(rf"(^|\s){word}(\s|$)", one) for word in words)]
    return found.split()


@pytest.fixture
def recall(trained):
    """MHA, MLA of two sizes, and DMA of two windows with three seeds, at two lengths."""
    make, task = trained.made_up, trained.MQAR
    rows = []
    for seqlen in (2048, 4096):
        rows += [make(task, "mha", 0.98, seqlen=seqlen, infer_ms=8.0, infer_batch=4)]
        rows += [
            make(task, "mla", 0.9, seqlen=seqlen, mla_latent=size, infer_ms=4.0, infer_batch=8) for size in (8, 16)
        ]
        for window in (256, 512):
            rows += [
                make(task, "dma", value, seqlen=seqlen, window=window, seed=seed, infer_ms=2.0 + seed, infer_batch=4)
                for seed, value in enumerate((0.5, 0.6, 0.7))
            ]
    return task, rows


def test_one_line_a_setting_with_the_interval_that_fits_its_seeds(recall):
    task, rows = recall
    text = printed(task, rows)
    assert len([one for one in text.splitlines() if one.startswith(("2k", "4k"))]) == 10
    assert all(words in text for words in ("pairs 512", "1-3 seeds", "lr 0.001", "chance 0.001"))
    assert line(text, "2k", "dma", "256")[2:] == ["256", "0.5", "0.600", "0.500-0.700", "3", "2.67x"]
    low, high = wilson(980, 1000)[1:]
    assert line(text, "4k", "mha")[2:] == ["0.980", f"{low:.3f}-{high:.3f}", "8", "1.00x"]


def test_times_of_other_batches_are_not_compared(recall):
    task, rows = recall
    assert all(row["speedup"] is None for row in summaries(task, rows) if row["attention"] == "mla")


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_fit(recall, trained, width):
    task, rows = recall
    rows = [{**row, "pairs_kept": 0.5, "density": 0.25} for row in rows]
    rows += [trained.made_up(task, "nsa", None, status="OUT_OF_MEMORY", reason="needs 90 GiB")]
    text = printed(task, rows, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert line(text, "nsa", "4")[-1] == "OUT_OF_MEMORY"
    assert "interval" in text and "kept" in text and (" ms " in text) == (width > 80)


def test_undertrained_rows_say_so_in_the_table_and_first_in_the_notes(recall):
    task, rows = recall
    rows = [{**row, "accuracy": 0.3} if row["attention"] == "mha" and row["seqlen"] == 4096 else row for row in rows]
    text = printed(task, rows)
    assert line(text, "4k", "dma", "256")[-1] == "UNDERTRAINED" and line(text, "2k", "dma", "256")[-1] == "PASSED"
    told = notes(task, rows)
    assert told[0].startswith("UNDERTRAINED, 9 of 18 rows that ran")
    assert "needs 0.95 and reaches 0.300 (seqlen 4k)" in told[1]


def test_a_missing_control_is_said(trained):
    rows = [trained.made_up(trained.MQAR, "dma", 0.9)]
    assert any("MHA was not run with these settings" in note for note in notes(trained.MQAR, rows))


def test_rates_that_were_not_chosen_are_listed_and_not_shown(trained):
    make, task = trained.made_up, trained.MQAR
    rows = [make(task, "mha", 0.97), make(task, "mha", 0.9, lr=1e-2)]
    assert len(sheets(task, rows)[0].cells) == 1
    (note,) = [one for one in notes(task, rows) if one.startswith("learning rate")]
    assert "mha 0.001 (0.970), not 0.01 (0.900)" in note


def test_an_accuracy_below_1_is_never_shown_as_1(trained):
    rows = [trained.made_up(trained.MQAR, "mha", 0.99996, total=100_000)]
    assert "0.999" in sheets(trained.MQAR, rows)[0].cells[0]


def needle_rows(trained, attention, accuracy_of):
    return [
        trained.made_up(trained.NEEDLE, attention, accuracy_of(length), test_len=length, depth=depth, total=64)
        for length in (512, 1024, 2048, 4096)
        for depth in (0, 50, 100)
    ]


def test_needles_by_length_with_what_is_left_beyond(trained):
    rows = needle_rows(trained, "mha", lambda length: {512: 1.0, 1024: 1.0, 2048: 0.875, 4096: 0.5}[length])
    rows += needle_rows(trained, "dma", lambda length: {512: 1.0, 1024: 0.75, 2048: 0.9375, 4096: 0.25}[length])
    mha, dma = extrapolation(trained.NEEDLE, rows)
    assert (mha["within"], mha["beyond"], mha["ratio"], mha["effective"]) == (1.0, 0.6875, 0.6875, 2048)
    assert (dma["within"], dma["effective"]) == (0.875, 512)  # a later recovery does not count
    text = printed(trained.NEEDLE, rows, 80)
    assert line(text, "attention", "512", "1k", "2k\\*", "4k\\*")
    assert line(text, "mha") == ["mha", "1.00", "1.00", "0.88", "0.50", "1.000", "0.688", "0.69", "2k"]
    assert any("* longer than in training" in note for note in notes(trained.NEEDLE, rows))


def test_a_model_that_was_never_tested_beyond_has_no_ratio(trained):
    rows = [trained.made_up(trained.NEEDLE, "mha", 0.95)]
    (only,) = extrapolation(trained.NEEDLE, rows)
    assert only["beyond"] is None and only["ratio"] is None and only["effective"] == 1024
    assert printed(trained.NEEDLE, rows)


def test_patterns_stand_side_by_side_and_undertrained_ones_in_brackets(trained):
    make, task = trained.made_up, trained.PATTERNS
    rows = [
        make(task, kind, value, pattern=pattern)
        for pattern, control in (("select", 0.99), ("copy", 0.5))
        for kind, value in (("mha", control), ("dma", 0.75))
    ]
    text = printed(task, rows, 80)
    assert line(text, "attention") == ["attention", "copy", "select"]
    assert line(text, "mha")[1] == "(0.500)" and line(text, "dma")[1:3] == ["(0.750)", "0.750"]
    assert "in brackets" in notes(task, rows)[0]


def test_columns_that_are_not_shown_are_not_explained(trained, recall):
    make, task = trained.made_up, trained.PATTERNS
    rows = [make(task, kind, 0.99, pattern="copy", infer_ms=1.0, infer_batch=4) for kind in ("mha", "dma")]
    told = " ".join(notes(task, rows))
    assert "test examples" in told and "interval" not in told and "ms:" not in told
    shown = " ".join(notes(*recall))
    assert "interval: Wilson" in shown and "ms: one forward" in shown


def test_the_window_beyond_the_sequence_is_noted(trained):
    rows = [trained.made_up(trained.MQAR, "mha", 0.97)]
    rows += [trained.made_up(trained.MQAR, "dma", 0.97, window=4096, sparsity_active=False)]
    assert any("nothing is sparse there (dma)" in note for note in notes(trained.MQAR, rows))


def test_no_rows_no_table(trained):
    assert tables(trained.MQAR, []) == [] and notes(trained.MQAR, []) == []


def test_a_needle_cell_that_failed_is_a_line_without_numbers(trained):
    whole = {"test_len": [1024, 2048], "depth": [0, 50], "kind": ["single", "multi-key"]}
    rows = needle_rows(trained, "mha", lambda length: 0.95)
    rows += [trained.made_up(trained.NEEDLE, "nsa", None, status="OUT_OF_MEMORY", reason="needs 90 GiB", **whole)]
    text = printed(trained.NEEDLE, rows, 100)
    assert line(text, "nsa", "4") == ["nsa", "4", "OUT_OF_MEMORY"]
    assert any("needs 90 GiB" in note for note in notes(trained.NEEDLE, rows))


def test_notes_tell_the_text_of_needles_and_tokenizers_that_differ(trained):
    def row(kind, key, **more):
        fields = {
            "model": f"{kind}@1",
            "haystack": "text",
            "haystack_key": key,
            "text": "books.jsonl",
            "train_len": 1024,
        }
        return trained.made_up(
            trained.NEEDLE, kind, 0.97, **fields | {"test_len": 1024, "depth": 50, "lr": None} | more
        )

    same = " ".join(notes(trained.NEEDLE, [row("mha", "a"), row("dma", "a")]))
    assert "hidden in the text books.jsonl" in same and "made-up" not in same and "tokenizers" not in same
    assert "seeds are of the haystacks" in same and "--seeds" not in same
    other = " ".join(notes(trained.NEEDLE, [row("mha", "a", text="synthetic"), row("dma", "b")]))
    assert "synthetic, books.jsonl (made-up words" in other and "other tokenizers met other parts of the text" in other
    by_seed = notes(trained.NEEDLE, [row("mha", "a"), row("mha", "b", seed=1)])
    assert "tokenizers" not in " ".join(by_seed)


def test_speeds_of_trainings_that_shared_the_device_are_left_out(trained):
    task = replace(trained.MQAR, columns=("tokens_per_s",))
    rows = [trained.made_up(task, name, 0.97, tokens_per_s=12345.0, jobs=1) for name in ("mha", "dma")]
    assert printed(task, rows).count("12345") + printed(task, rows).count("1.23e+04") == 2
    rows[1]["jobs"] = 4
    assert printed(task, rows).count("1.23e+04") == 1
    assert any("1 of 2 rows were trained beside others (--jobs)" in note for note in notes(task, rows))
    rows[0]["jobs"] = 4
    assert "tokens per s" not in printed(task, rows)
