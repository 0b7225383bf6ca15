"""One task of lm-eval on one model: its results as rows, and what each example scored."""

import contextlib
import functools
import io
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import env, hash_string

from dmabench.tasks.downstream import audit as audits
from dmabench.tasks.downstream.catalogue import RULER_LENGTHS, known, nearest
from dmabench.tasks.downstream.ruler import refuse_endless

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap would start a process a core

TEMPLATES = 1024
"""Compiled templates that are kept."""
BOOTSTRAP = 1000
"""Resamples for errors that have no formula (perplexities); accuracies have closed forms."""
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""lm-eval's own defaults."""


@dataclass
class Outcome:
    """What one task on one model gave."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One for each metric of the task (of its groups and members too): task, metric, value, stderr, ..."""
    scores: list[list[Any]] = field(default_factory=list)
    """For each row the metric on each example, those of a group one task after the other."""
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """task -> lm-eval's log of each example."""


def task_manager(overrides: Path, hub: bool) -> TaskManager:
    """Finds tasks by name: those of the folder that write_overrides filled and, with `hub`, all of lm-eval."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    return TaskManager(include_path=str(overrides), include_defaults=hub)


def check_tasks(manager: TaskManager, names: list[str]) -> None:
    """ValueError for a name that lm-eval does not know, with the nearest that it does."""
    for name in names:
        if name not in manager.task_index:
            near = nearest(name, manager.all_tasks) or nearest(name, known())
            raise ValueError(f"lm-eval has no task {name!r}{near}")


def load(
    manager: TaskManager, name: str, shots: int | None, tokenizer: str | None = None, lengths: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Tasks and groups of a name, prepared as lm-eval's simple_evaluate prepares them.

    Args:
        shots: examples in a prompt; None: what the task says, else 0.
        tokenizer: folder of the tokenizer that tasks measure with which make their data (RULER).
        lengths: the lengths that those make, in tokens.

    Raises:
        ValueError: the data cannot be had, a library that the task needs is missing, or the tokenizer does not suit.
    """
    if tokenizer:
        refuse_endless(name, tokenizer)
    _seed()  # as simple_evaluate does before it loads: some tasks draw their data
    made: dict[str, Any] = {"tokenizer": tokenizer} if tokenizer else {}
    if lengths:
        made["max_seq_lengths"] = list(lengths)
    manager._factory._meta = made  # its constructor takes it, and would read the index again
    try:
        with quiet():
            loaded = dict(manager.load([name]))
    except ImportError as error:
        raise ValueError(f"{name} needs a library: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:  # of datasets, of the hub's client and of the network
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the data of {name} cannot be had ({type(error).__name__}: {first})") from error
    for task in loaded["tasks"].values():
        if shots is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _seed() -> None:
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])


def score(model: Any, loaded: dict[str, Any], name: str, limit: int | None = None) -> Outcome:
    """Scores a LanguageModel on the tasks of `load`.

    Rows have: task, subtask_of (None for what was named), metric, filter, headline (the metric that tables show),
    value, stderr, higher_is_better, chance, examples, of_examples, shots, output_type, task_version, task_hash, and
    the fields of the audit.
    """
    _seed()
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
    with quiet():
        results = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True)
    assert results is not None  # None is for ranks of lm-eval's own, and our models have rank 0 for it
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    examples = audits.longest(model.asked)
    outcome = Outcome(samples=samples)
    for task in [*loaded["tasks"], *loaded.get("groups", {})]:
        leaves = _leaves(loaded, task)
        facts = {
            "task": task,
            "subtask_of": None if task == name else name,
            "examples": sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
            "of_examples": sum(results["n-samples"][leaf]["original"] for leaf in leaves),
            "shots": max(results["n-shot"][leaf] or 0 for leaf in leaves),
            "output_type": loaded["tasks"][leaves[0]].OUTPUT_TYPE,
            "task_version": str(results["versions"].get(task)),
            "task_hash": task_hash([one for leaf in leaves for one in samples[leaf]]),
            **audits.audit([one for leaf in leaves for one in examples.get(leaf, [])], model.config),
        }
        metrics = _metrics(results["results"].get(task, {}))
        headline = headline_metrics([metric for metric, _ in metrics])
        for (metric, way), (value, stderr) in metrics.items():
            if value == -1 and metric.isdecimal() and int(metric) in RULER_LENGTHS:
                continue  # how RULER says that it has no example of this length
            outcome.rows.append(
                {
                    **facts,
                    "metric": metric,
                    "filter": way,
                    "headline": metric in headline,
                    "value": value,
                    "stderr": stderr if isinstance(stderr, float) else None,
                    "higher_is_better": _better(results, leaves[0], metric),
                    "chance": _chance(metric, [one for leaf in leaves for one in samples[leaf]], facts["output_type"]),
                }
            )
            outcome.scores.append([one[metric] for leaf in leaves for one in samples[leaf] if one["filter"] == way])
    return outcome


def headline_metrics(metrics: list[str]) -> set[str]:
    """The metrics that stand for a task: accuracy (normalised by length where there is such), and one perplexity."""
    found = {next((name for name in ("acc_norm", "acc", "exact_match") if name in metrics), "")}
    found.add(next((name for name in ("perplexity", "word_perplexity") if name in metrics), ""))
    return (found - {""}) or set(metrics)


def task_hash(samples: list[dict[str, Any]]) -> str:
    """lm-eval's hash of a task: documents, prompts and targets of all its examples."""
    return hash_string("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval prints to stdout, which belongs to the rows; our model says of every short text what the audit counts."""
    logging.getLogger("dmabench.tasks.model").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), _compiled_once():
        yield


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """lm-eval compiles the template of each prompt, and of each example in it, whenever it fills it in: half of the
    time that it takes to write the prompts of MMLU with five examples."""
    env.from_string = functools.lru_cache(TEMPLATES)(env.from_string)  # this object's alone, in front of its class's
    try:
        yield
    finally:
        del env.from_string


def _leaves(loaded: dict[str, Any], name: str) -> list[str]:
    group = loaded.get("groups", {}).get(name)
    return [name] if group is None else [task.task_name for task in group.get_all_tasks()]


def _metrics(results: dict[str, Any]) -> dict[tuple[str, str], tuple[float, Any]]:
    """(metric, filter) -> value and error, of lm-eval's "acc,none" and "acc_stderr,none"."""
    found = {}
    for name, value in results.items():
        metric, comma, way = name.partition(",")
        if comma and not metric.endswith("_stderr"):
            found[metric, way] = (value, results.get(f"{metric}_stderr,{way}"))
    return found


def _better(results: dict[str, Any], leaf: str, metric: str) -> bool | None:
    return results["higher_is_better"].get(leaf, {}).get(metric)


def _chance(metric: str, samples: list[dict[str, Any]], output_type: str) -> float | None:
    """What guessing gives: a share of the choices. None for perplexities, which guessing has none of."""
    if output_type == "multiple_choice" and metric in ("acc", "acc_norm"):
        return sum(1 / len(one["arguments"]) for one in samples) / len(samples)
    return 0.0 if metric in ("acc", "exact_match") or metric.isdecimal() else None
