"""`dmabench eval` from the command line: what is refused, what is listed, and one whole run that goes on."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from dmabench.cli.main import app
from dmabench.errors import Refusal
from dmabench.tasks.downstream import catalogue, checkpoints, local_data
from dmabench.tasks.model import DmabenchForCausalLM
from dmabench.tasks.presets import model_config


@pytest.fixture(autouse=True)
def environment():
    """The command tells libraries to be quiet and offline: not for the tests after it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TQDM_DISABLE", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, os.environ.get(name, "0"))
        patch.delenv("DMABENCH_DATA", raising=False)
        patch.setenv("DMABENCH_COMMIT", "0123456")  # a run goes on although somebody commits meanwhile
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two checkpoints of one name in different folders, and a data folder."""
    root = tmp_path_factory.mktemp("place")
    for folder, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        DmabenchForCausalLM(model_config("tiny", "dma", initializer_range=0.3)).save_pretrained(root / folder / "model")
        checkpoints._byte_tokenizer().save_pretrained(root / folder / "model")
    (root / "data" / "openbookqa").mkdir(parents=True)
    (root / "data" / "wikitext").mkdir()
    for name in ("openbookqa/test.jsonl", "wikitext/test.jsonl"):
        (root / "data" / name).write_text((local_data.SAMPLE_ITEMS / name).read_text())
    return root


def call(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "{place}/none", "--tasks", "sample"], "there is no folder"),
        (["--model", "{place}/one", "--tasks", "sample"], "no config.json"),
        (["--model", "{model}"], "--tasks sample needs no data"),
        (["--tasks", "lambada_openai"], "no model: name a checkpoint's folder"),
        (["--tasks", "lambada_openai", "--suite", "paper"], "leave one out"),
        (["--model", "{model}", "--suite", "papr"], "did you mean paper?"),
        (["--model", "{model}", "--tasks", " , "], "names no task"),
        (["--model", "{model}", "--tasks", "openbookq", "--data", "{place}/data"], "did you mean openbookqa?"),
        (["--model", "{model}", "--tasks", "piqa", "--data", "{place}/data"], "it has no piqa/validation.jsonl"),
        (["--model", "{model}", "--tasks", "mmlu", "--data", "{place}/data"], "test.jsonl and 52 more"),
        (
            ["--model", "{model}", "--tasks", "openbookqa", "--shots", "5", "--data", "{place}/data"],
            "with examples in the prompt: it has no openbookqa/train.jsonl",
        ),
        (["--model", "{model}", "--tasks", "ruler", "--data", "{place}/data"], "fetches texts"),
        (["--model", "{model}", "--suite", "paper", "--data", "{place}"], "serves no task"),
        (["--model", "{model}", "--tasks", "piqa", "--data", "{place}/none"], "does not exist"),
        (["--model", "{model}", "--model", "{model}", "--tasks", "sample"], "is there twice"),
        (["--model", "{model}", "--tasks", "sample", "--shots", "x"], "--shots 'x'"),
        (["--model", "{model}", "--tasks", "sample", "--window", "0"], "--window 0"),
        (["--model", "{model}", "--tasks", "sample", "--lengths", "5k"], "choose from 4k, 8k"),
        (["--model", "{model}", "--tasks", "sample", "--dtype", "fp8"], "choose from auto, fp32"),
        (["--model", "{model}", "--tasks", "sample", "--device", "tpu"], "write cpu, cuda"),
        (["--model", "untrained:", "--tasks", "sample"], "untrained:PRESET"),
        (["--model", "untrained:tony", "--tasks", "sample"], "known are tiny"),
        (["--model", "untrained:tiny:mha", "--tasks", "sample", "--window", "8"], "has no window to set"),
        (["--model", "{model}", "--tasks", "sample", "--tokenizer", "{place}/none"], "there is no such folder"),
        (
            ["--model", "{model}", "--tasks", "sample_piqa", "--resume", "none", "--device", "cpu"],
            "there is no run 'none'",
        ),
        (
            ["--model", "{model}", "--tasks", "sample_piqa", "--resume", "latest", "--device", "cpu"],
            "make one with `dmabench eval --tasks sample`",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(place, tmp_path, words, told):
    given = [word.format(place=place, model=place / "one" / "model") for word in words]
    result = call(*given, "--results", tmp_path / "results")
    assert isinstance(result.exception, Refusal), result.output
    assert told in str(result.exception)
    assert result.stdout == "" and not list(tmp_path.glob("results/*"))


def test_ruler_without_its_libraries_says_what_to_install(place, monkeypatch):
    words = ["--model", "untrained:tiny", "--data", place / "data", "--dry-run"]
    monkeypatch.setattr(catalogue, "ruler_lacks", lambda: ["nltk", "wonderwords"])
    for asked in (["--suite", "long"], ["--tasks", "openbookqa,niah_single_1"]):
        told = str(call(*words, *asked).exception)
        assert "with nltk and wonderwords, which are not installed: pip install 'lm-eval[ruler]'" in told
    assert call(*words, "--tasks", "openbookqa").exit_code == 0
    monkeypatch.setattr(catalogue, "ruler_lacks", list)
    result = call(*words, "--suite", "long", "--lengths", "4k,8k")
    assert result.exit_code == 0 and "ruler_vt" in result.stdout
    assert "left out of the suite: niah_single_2 (it fetches texts)" in result.stderr


def test_no_network_says_what_to_do(place, tmp_path, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    from dmabench.evals.run import harness

    # Reading lm-eval's whole index takes seconds: one folder of it is enough.
    whole = harness.TaskManager
    path = catalogue.definitions() / "piqa"
    monkeypatch.setattr(harness, "TaskManager", lambda **_: whole(include_path=str(path), include_defaults=False))
    words = ("--model", place / "one" / "model", "--device", "cpu", "--results", tmp_path / "results")
    result = call(*words, "--tasks", "piqa")
    assert isinstance(result.exception, Refusal), result.output
    assert "no route to host" in str(result.exception) and "--data DIR" in str(result.exception)
    assert "--tasks sample" in str(result.exception) and not list(tmp_path.glob("results/*"))
    unknown = call(*words, "--tasks", "piqaa")
    assert isinstance(unknown.exception, Refusal) and "did you mean piqa?" in str(unknown.exception)


def test_a_folder_is_listed(place):
    result = call("--data", place / "data")
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert result.exit_code == 0
    assert lines["openbookqa"] == ["yes", "4", "no", "openbookqa/train.jsonl"]
    assert lines["wikitext"] == ["yes", "3", "yes"] and lines["piqa"][:2] == ["no", "piqa/validation.jsonl"]
    found = [json.loads(line) for line in call("--data", place / "data", "--json").stdout.splitlines()]
    assert {one["task"] for one in found if one["served"]} == {"openbookqa", "wikitext"} and len(found) == 72


def test_dry_run_scores_nothing(place, tmp_path):
    words = ["--model", place / "one" / "model", "--suite", "paper", "--data", place / "data", "--limit", 3]
    result = call(*words, "--dry-run", "--json", "--results", tmp_path / "results")
    assert result.exit_code == 0 and not (tmp_path / "results").exists()
    (line,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert line["task"] == "openbookqa" and line["examples"] == 3 and line["data"] == "data"
    assert "left out of the suite" in result.stderr and "piqa (no piqa/validation.jsonl)" in result.stderr
    table = call("--tasks", "sample,sample_piqa", "--shots", "0,2", "--dry-run").stdout
    assert table.startswith("20 cells; nothing was scored") and "untrained:tiny" in table  # texts take no examples


def test_looking_imports_nothing_heavy(place):
    script = (
        "import sys; sys.argv[1:] = {words}; from dmabench.cli.main import run; import atexit; "
        "atexit.register(lambda: print(*sorted(name.split('.')[0] for name in sys.modules))); run()"
    )
    for words in (
        ["eval", "--help"],
        ["eval", "--tasks", "sample", "--dry-run"],
        ["eval", "--data", str(place / "data")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script.format(words=words)], capture_output=True, text=True, cwd=place, timeout=280
        )
        loaded = set(done.stdout.splitlines()[-1].split())
        assert "typer" in loaded, done.stderr
        assert loaded.isdisjoint({"torch", "transformers", "datasets", "lm_eval", "numpy", "pandas"}), words


def test_a_run_scores_stores_and_goes_on(place, tmp_path, monkeypatch):
    words = ["--model", place / "one" / "model", "--model", place / "two" / "model", "--results", tmp_path]
    words += ["--tasks", "openbookqa,sample_lambada_openai,sample_mmlu", "--data", place / "data", "--device", "cpu"]
    from dmabench.evals import run as eval_run

    score, scored = eval_run.harness.score, []

    def until_the_fifth(model, loaded, name, limit):
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(name)
        return score(model, loaded, name, limit)

    monkeypatch.setattr(eval_run.harness, "score", until_the_fifth)
    first = call(*words, "--log-samples")
    assert first.exit_code == 130, first.output
    assert "4 of 6 tasks are stored" in first.stderr and "--resume" in first.stderr
    (path,) = tmp_path.iterdir()
    logged = sorted((path / "logged").iterdir())
    assert len(logged) == 4 and len([json.loads(line) for line in logged[0].read_text().splitlines()]) >= 4

    monkeypatch.setattr(eval_run.harness, "score", score)
    second = call(*words, "--resume", "latest", "--json")
    assert second.exit_code == 0, second.output
    rows = [json.loads(line) for line in second.stdout.splitlines()]
    assert [row["task"] for row in rows if row["headline"]] == [
        name for name in ("openbookqa", *["sample_lambada_openai"] * 2, "sample_mmlu") for name in [name]
    ] * 2
    assert rows == [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"dma one/model", "dma two/model"}
    assert len({row["weights"] for row in rows}) == 2
    by_model = {
        name: [row["value"] for row in rows if row["model"] == name and row["metric"] == "perplexity"]
        for name in ("dma one/model", "dma two/model")
    }
    assert by_model["dma one/model"] != by_model["dma two/model"], "two models share a score"
    row = rows[0]
    assert row["device"] and row["window"] == 16 and row["attention"] == "dma" and row["data"] == "data"
    assert row["sparsity_active"] == 1 and 0 < row["density"] < 1 and len(row["task_hash"]) == 64
    versions = json.loads((path / "manifest.json").read_text())["environment"]["versions"]
    assert versions["lm-eval"] and versions["transformers"]

    shown = call(*words, "--resume", "latest")
    assert shown.exit_code == 0 and "one/model" in shown.stdout and "two/model" in shown.stdout
    assert "note: sample data" in shown.stderr and "What the examples asked" in shown.stdout
    other = call(*words, "--resume", "latest", "--limit", 2)
    assert isinstance(other.exception, Refusal) and "setting limit" in str(other.exception)


def test_a_task_that_breaks_costs_itself(place, tmp_path, monkeypatch):
    from dmabench.evals import run as eval_run

    score = eval_run.harness.score

    def breaks(model, loaded, name, limit):
        if name == "sample_piqa":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return score(model, loaded, name, limit)

    monkeypatch.setattr(eval_run.harness, "score", breaks)
    words = ("--model", place / "one" / "model", "--tasks", "sample_piqa,sample_winogrande", "--device", "cpu")
    result = call(*words, "--results", tmp_path, "--window", 8, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["OUT_OF_MEMORY", "PASSED"] and result.exit_code == 0
    assert "9 GiB" in rows[0]["reason"] and rows[1]["window"] == rows[1]["window_set"] == 8
