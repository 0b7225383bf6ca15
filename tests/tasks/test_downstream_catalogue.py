"""The catalogue against the installed definitions of lm-eval: what it says of splits and groups must be true."""

import importlib.metadata
import importlib.util
import re

import pytest
import yaml

from dmabench.tasks.downstream import catalogue

FIELDS = ("training_split", "validation_split", "test_split", "fewshot_split")


class Loader(yaml.SafeLoader):
    """Reads !function as the text behind it."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def definition(path):
    """A definition with what it includes."""
    fields = yaml.load(path.read_text(), Loader)
    included = fields.pop("include", None)
    return (definition(path.parent / included) if included else {}) | fields


@pytest.mark.parametrize("name", [name for name in catalogue.stock_tasks() if not name.startswith("mmlu_")])
def test_splits_are_those_of_the_definition(name):
    stock = catalogue.stock_tasks()[name]
    fields = definition(catalogue.definitions() / stock.definition)
    assert fields["task"] == name
    assert {field: fields[field] for field in FIELDS if fields.get(field)} == stock.splits
    assert (fields["output_type"] == "loglikelihood_rolling") == stock.whole_texts


def test_mmlu_has_57_subjects_in_four_groups():
    groups = catalogue.groups()
    assert {name: len(members) for name, members in groups.items()} == {
        "mmlu": 57,
        "mmlu_humanities": 13,
        "mmlu_other": 13,
        "mmlu_social_sciences": 12,
        "mmlu_stem": 19,
    }
    assert sorted(name for group in groups if group != "mmlu" for name in groups[group]) == sorted(groups["mmlu"])
    stock = catalogue.stock_tasks()["mmlu_anatomy"]
    fields = definition(catalogue.definitions() / stock.definition)
    assert {field: fields[field] for field in FIELDS if fields.get(field)} == stock.splits
    assert (stock.scored, stock.shown) == ("test", "dev")
    for group in groups:
        assert definition(catalogue.definitions() / catalogue.group_definition(group))["group"] == group


def test_ruler_is_the_group_of_lm_eval():
    fields = definition(catalogue.definitions() / "ruler" / "ruler.yaml")
    assert sorted(fields["task"]) == sorted(catalogue.RULER)
    lengths = {
        int(one["metric"]) for one in definition(catalogue.definitions() / "ruler/niah_single_1.yaml")["metric_list"]
    }
    assert lengths == set(catalogue.RULER_LENGTHS)


def test_ruler_libraries_are_those_that_lm_eval_names(monkeypatch):
    """Its extra `ruler`; find_spec is asked for each, and none is imported."""
    extra = {
        re.match(r"[\w.-]+", line)[0] for line in importlib.metadata.requires("lm-eval") if 'extra == "ruler"' in line
    }
    assert extra == set(catalogue.RULER_LIBRARIES)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nltk" else object())
    assert catalogue.ruler_lacks() == ["nltk"]


def test_suites_name_what_is_known():
    known = catalogue.known()
    assert {task for suite in catalogue.SUITES.values() for task in suite} <= set(known)
    assert catalogue.nearest("lambada_opena", known) == "; did you mean lambada_openai?"
    assert catalogue.nearest("zzzzzz", known) == ""
    assert catalogue.takes_examples("mmlu") and not catalogue.takes_examples("sample_wikitext")
