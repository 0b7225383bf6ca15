"""What RULER asks of a tokenizer, and that its data are the same each time."""

import random
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dmabench.tasks.downstream import harness
from dmabench.tasks.downstream.ruler import refuse_endless


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer with a token for each letter, and one with a token for each word (all of them unknown)."""
    made = {}
    for name, split in (("letters", pre_tokenizers.Split("", "isolated")), ("words", pre_tokenizers.Whitespace())):
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = split
        made[name] = str(tmp_path_factory.mktemp(name))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(made[name])
    return made


@pytest.mark.parametrize("task", ["ruler", "ruler_vt"])
def test_an_example_that_never_fits_is_refused(folder, task):
    with pytest.raises(ValueError, match=r"worked example of 500 tokens.*1\.0 characters a token.*larger vocabulary"):
        refuse_endless(task, folder["letters"])
    refuse_endless(task, folder["words"])


def test_other_tasks_show_none(folder):
    refuse_endless("niah_single_1", folder["letters"])


def test_loading_refuses_before_the_data_are_made(folder):
    with pytest.raises(ValueError, match="ruler_vt shows a worked example"):
        harness.load(SimpleNamespace(), "ruler_vt", None, folder["letters"], (4096,))


def test_data_that_a_task_draws_are_the_same_each_time(folder):
    drawn = []
    manager = SimpleNamespace(_factory=SimpleNamespace(), load=lambda _: drawn.append(random.random()) or {"tasks": {}})
    for _ in range(2):
        harness.load(manager, "niah_single_1", None, folder["words"], (4096,))
    assert drawn[0] == drawn[1]
