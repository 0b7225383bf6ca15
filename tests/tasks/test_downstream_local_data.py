"""A folder of local files: what it serves, what it lacks, and that nothing but the data source is overridden."""

import json

import pytest
import yaml

from dmabench.tasks.downstream import catalogue, local_data


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n{"text": "b"}\n\n')


def test_a_folder_serves_what_it_has_the_scored_split_of(tmp_path):
    put(
        tmp_path,
        "lambada_openai/test.jsonl",
        "piqa/train.jsonl",
        "hellaswag/validation.jsonl",
        "mmlu/virology/test.jsonl",
    )
    served = {one.task: one for one in local_data.served(tmp_path)}
    assert {name for name, one in served.items() if not one.missing} == {"lambada_openai", "hellaswag", "mmlu_virology"}
    assert served["lambada_openai"].examples == 2  # empty lines are none
    assert served["piqa"].missing == ("piqa/validation.jsonl",)
    assert served["hellaswag"].fewshot_missing == ("hellaswag/train.jsonl",)
    assert served["mmlu_virology"].fewshot_missing == ("mmlu/virology/dev.jsonl",)
    assert len(served["mmlu"].missing) == 56 and served["mmlu"].examples == 2


def test_lm_eval_may_lie_in_the_named_folder(tmp_path):
    put(tmp_path, "lm_eval/wikitext/test.jsonl")
    assert local_data.find_folder(str(tmp_path)) == tmp_path / "lm_eval"
    assert local_data.find_folder(str(tmp_path / "lm_eval")) == tmp_path / "lm_eval"


def test_folders_that_serve_nothing_are_refused(tmp_path):
    put(tmp_path, "some/file.jsonl")
    with pytest.raises(ValueError, match="serves no task"):
        local_data.find_folder(str(tmp_path))
    with pytest.raises(ValueError, match="is a file"):
        local_data.find_folder(str(tmp_path / "some" / "file.jsonl"))
    with pytest.raises(ValueError, match="does not exist"):
        local_data.find_folder(str(tmp_path / "none"))


def test_only_the_data_source_is_overridden(tmp_path):
    put(tmp_path, "wikitext/test.jsonl", "arc_easy/test.jsonl", "arc_easy/train.jsonl")
    into = tmp_path / "into"
    into.mkdir()
    local_data.write_overrides(into, tmp_path)
    fields = yaml.safe_load((into / "wikitext.yaml").read_text())
    assert fields.pop("include") == str(catalogue.definitions() / "wikitext" / "wikitext.yaml")
    source = fields.pop("dataset_kwargs")
    assert source["data_files"] == {"test": str(tmp_path / "wikitext" / "test.jsonl")}
    assert fields == {
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "validation_split": None,
    }
    arc = yaml.safe_load((into / "arc_easy.yaml").read_text())
    assert set(arc["dataset_kwargs"]["data_files"]) == {"train", "test"} and arc["validation_split"] is None
    assert not (into / "piqa.yaml").exists() and not (into / "mmlu.yaml").exists()


def test_sample_items_are_marked_and_whole():
    for name, stock in catalogue.SAMPLES.items():
        assert name.startswith("sample_")
        for split in {stock.scored} if stock.whole_texts else {stock.scored, stock.shown}:
            path = local_data.SAMPLE_ITEMS / stock.folder / f"{split}.jsonl"
            items = [json.loads(line) for line in path.read_text().splitlines()]
            assert len(items) >= 3 and len({json.dumps(item) for item in items}) == len(items)
        assert local_data.sample_examples(name) >= 3
        if not stock.whole_texts:  # five examples for the prompt, and the one that is asked
            assert local_data.sample_examples(name, stock.shown) >= 5 + (stock.shown == stock.scored)
