"""The tasks whose data can come from a folder: where lm-eval's definition is, and which files it then needs."""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SAMPLE = "sample_"
"""In front of a task's name: the same task on a few items written for this project."""


@dataclass(frozen=True)
class Stock:
    """One task of lm-eval. tests compare the splits with the installed definition."""

    definition: str
    """Its YAML file, under lm_eval/tasks."""
    folder: str
    """Where a data folder has its files, <split>.jsonl each."""
    splits: dict[str, str]
    """What the definition calls its splits: training_split, validation_split, test_split, fewshot_split -> name."""
    whole_texts: bool = False
    """The perplexity of texts: there is no prompt that could hold examples."""

    @property
    def scored(self) -> str:
        """The split that is scored, as lm-eval chooses it."""
        return self.splits.get("test_split") or self.splits["validation_split"]

    @property
    def shown(self) -> str:
        """The split that few-shot examples come from, as lm-eval chooses it."""
        order = ("fewshot_split", "training_split", "validation_split", "test_split")
        return next(self.splits[key] for key in order if key in self.splits)


def _splits(**names: str) -> dict[str, str]:
    return {f"{key}_split": name for key, name in names.items()}


_ALL = _splits(training="train", validation="validation", test="test")
_NO_TEST = _splits(training="train", validation="validation")
_MMLU = _splits(test="test", fewshot="dev")

_SINGLE = {
    "lambada_openai": Stock("lambada/lambada_openai.yaml", "lambada_openai", _splits(test="test")),
    "wikitext": Stock("wikitext/wikitext.yaml", "wikitext", _ALL, whole_texts=True),
    "openbookqa": Stock("openbookqa/openbookqa.yaml", "openbookqa", _ALL),
    "arc_easy": Stock("arc/arc_easy.yaml", "arc_easy", _ALL),
    "arc_challenge": Stock("arc/arc_challenge.yaml", "arc_challenge", _ALL),
    "piqa": Stock("piqa/piqa.yaml", "piqa", _NO_TEST),
    "hellaswag": Stock("hellaswag/hellaswag.yaml", "hellaswag", _NO_TEST),
    "winogrande": Stock("winogrande/default.yaml", "winogrande", _NO_TEST),
    "triviaqa": Stock("triviaqa/default.yaml", "triviaqa", _NO_TEST),
    "pile_10k": Stock("pile_10k/pile_10k.yaml", "pile_10k", _splits(test="train"), whole_texts=True),
}

SAMPLES = {
    SAMPLE + name: stock
    for name, stock in (_SINGLE | {"mmlu": Stock("mmlu/default/_default_template_yaml", "mmlu", _MMLU)}).items()
}
"""The tasks on sample items; `sample` means all of them."""

RULER_MADE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")
RULER_FETCHED = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multiquery", "niah_multivalue")
RULER_ASKED = ("ruler_qa_squad", "ruler_qa_hotpot")
RULER = RULER_MADE + RULER_FETCHED + RULER_ASKED
"""RULER's tasks: those made of words and numbers alone, those with essays in between, those with questions. The last
two kinds fetch their texts."""
RULER_LIBRARIES = ("nltk", "wonderwords", "scipy")
"""What lm-eval's RULER imports beside the libraries of every task: its extra `ruler`."""
RULER_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""Lengths in tokens that lm-eval's RULER has metrics for."""

SUITES = {
    "paper": (
        "lambada_openai",
        "mmlu",
        "triviaqa",
        "arc_easy",
        "arc_challenge",
        "piqa",
        "hellaswag",
        "openbookqa",
        "winogrande",
    ),
    "long": RULER,
}
"""paper: Table 2 of arXiv 2508.02124. long: RULER."""


def definitions() -> Path:
    """The folder of lm-eval's task definitions. Looks it up without importing lm_eval.

    Raises:
        ValueError: lm-eval is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("lm-eval is not installed: pip install 'lm-eval[hf]'")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


@cache
def stock_tasks() -> dict[str, Stock]:
    """Every task that a folder can serve, MMLU's 57 subjects included."""
    subjects = {
        path.stem: Stock(f"mmlu/default/{path.name}", f"mmlu/{path.stem.removeprefix('mmlu_')}", _MMLU)
        for path in sorted((definitions() / "mmlu" / "default").glob("mmlu_*.yaml"))
    }
    return _SINGLE | subjects


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Groups of those tasks -> their members, down to single tasks."""
    by_tag: dict[str, list[str]] = {}
    for name, stock in stock_tasks().items():
        if stock.folder.startswith("mmlu/"):
            tag = re.search(r'^"?tag"?: *"?mmlu_(\w+)_tasks"?', (definitions() / stock.definition).read_text(), re.M)
            if tag:
                by_tag.setdefault(f"mmlu_{tag[1]}", []).append(name)
    found = {group: tuple(members) for group, members in sorted(by_tag.items())}
    return {"mmlu": tuple(name for members in found.values() for name in members), **found}


def group_definition(group: str) -> str:
    """The YAML file of a group of `groups()`, under lm_eval/tasks."""
    return f"mmlu/default/_{group}.yaml"


def members(name: str) -> tuple[str, ...]:
    """The single tasks of a task or group that is in this catalogue."""
    return groups().get(name, (name,))


def takes_examples(name: str) -> bool:
    """Can a prompt of the task hold examples? (Of tasks outside this catalogue: yes.)"""
    stock = SAMPLES.get(name) or stock_tasks().get(name)
    return stock is None or not stock.whole_texts


def known() -> list[str]:
    """Names that need no look at lm-eval's whole index, in the order of lists: single tasks, groups, RULER, samples."""
    subjects = [name for name in stock_tasks() if name not in _SINGLE]
    return [*_SINGLE, *groups(), *subjects, "ruler", *RULER, "sample", *SAMPLES]


def ruler_lacks() -> list[str]:
    """Those of RULER_LIBRARIES that are not installed. None is imported for it."""
    return [name for name in RULER_LIBRARIES if importlib.util.find_spec(name) is None]


def nearest(name: str, names: list[str]) -> str:
    """A half sentence that asks for the nearest name ("; did you mean X?"), or nothing where none is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
