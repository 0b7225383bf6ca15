"""Scores cells model by model and stores what they gave. Runs in every process that torchrun started."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal
from dmabench.evals.cells import EvalCell
from dmabench.store.failures import context_is_lost, status_of
from dmabench.store.runs import Run
from dmabench.tasks.downstream import checkpoints, harness, local_data
from dmabench.tasks.downstream.answers import Answers
from dmabench.tasks.downstream.checkpoints import Loaded, Source
from dmabench.tasks.downstream.language_model import LanguageModel, free_memory
from dmabench.tasks.downstream.peers import Peers

Told = Callable[[EvalCell, str, int, int], None]
"""Called with the cell, what is being done, how much of it is done and how much there is."""


@dataclass
class Plan:
    """How cells are scored."""

    sources: dict[str, Source]
    """Label -> where the model comes from."""
    device: str
    device_name: str
    batch: int
    dtype: str
    tokenizer: str | None
    data: Path | None
    hub: bool
    log_samples: bool
    told: Told
    said: Callable[[str], None]


@contextmanager
def tasks_of(plan: Plan, cells: list[EvalCell]) -> "Iterator[_Tasks]":
    """The tasks of the cells, with their data at hand.

    Raises Refusal for an unknown task, or data that cannot be had: before any model is scored.
    """
    with tempfile.TemporaryDirectory(prefix="dmabench-eval-") as folder:
        try:
            local_data.write_overrides(Path(folder), plan.data)
            tasks = _Tasks(harness.task_manager(Path(folder), plan.hub), Path(folder))
            harness.check_tasks(tasks.manager, list(dict.fromkeys(cell.task for cell in cells)))
            for cell in cells:
                if cell.data != "made":  # those measure their texts with a model's tokenizer
                    tasks.of(cell, None)
        except ValueError as error:
            advice = ""
            if plan.hub and "cannot be had" in str(error):
                advice = (
                    ". Without a network, give a folder of files with --data DIR (`dmabench eval --data DIR` lists "
                    "what it can serve), or try --tasks sample, which needs nothing"
                )
            raise Refusal(f"{error}{advice}") from error
        yield tasks


class _NoData(ValueError):
    """A task that makes or fetches its data cannot, for this model."""


class _Tasks:
    """lm-eval's tasks, loaded once for all models."""

    def __init__(self, manager: Any, folder: Path) -> None:
        self.manager = manager
        self._folder = folder
        self._loaded: dict[tuple[Any, ...], dict[str, Any]] = {}

    def of(self, cell: EvalCell, tokenizer: Any) -> dict[str, Any]:
        """The tasks of a cell; those that make their data measure it with the tokenizer."""
        measured_by = cell.model if cell.data == "made" else None
        key = (cell.task, cell.shots, cell.lengths, measured_by)
        if key not in self._loaded:
            words = None
            if measured_by is not None:
                words = str(self._folder / "tokenizers" / measured_by)
                tokenizer.save_pretrained(words)
            self._loaded[key] = harness.load(self.manager, cell.task, cell.shots, words, cell.lengths)
        return self._loaded[key]


def score_cells(
    cells: list[EvalCell],
    plan: Plan,
    tasks: _Tasks,
    run: Run | None,
    folder: Path,
    peers: Peers,
    advance: Callable[[int], None],
) -> None:
    """Scores the cells (those that have no rows yet) and stores their rows.

    Args:
        run: where rows go; None in processes other than the first.
        folder: the run's folder, for answers on the way.
        advance: called with 1 after each cell.

    Raises Refusal for a model that cannot be loaded.
    """
    for label, group in groupby(cells, key=lambda cell: cell.model):
        of_model = list(group)
        plan.told(of_model[0], "loading", 0, 1)
        source = plan.sources[label]
        try:
            loaded = checkpoints.load(source, plan.device, plan.dtype, plan.tokenizer)
        except ValueError as error:
            raise Refusal(str(error)) from error
        reads = checkpoints.reads(loaded.model, loaded.tokenizer)
        model = LanguageModel(loaded.model, loaded.tokenizer, plan.batch, reads, peers)
        model.said = plan.said
        for window, of_window in groupby(of_model, key=lambda cell: cell.window):
            if window is not None:
                loaded.model.set_window(window)
            for cell in of_window:
                _score_cell(cell, plan, tasks, model, loaded, run, folder, peers)
                advance(1)
        del model, loaded
        free_memory()


def _score_cell(
    cell: EvalCell,
    plan: Plan,
    tasks: _Tasks,
    model: LanguageModel,
    loaded: Loaded,
    run: Run | None,
    folder: Path,
    peers: Peers,
) -> None:
    answers = Answers(folder / "answers" / cell.id, peers.rank)
    peers.gather(None)  # nobody writes answers while another still reads those of an earlier attempt
    model.start(answers)
    model.told = lambda done, total: plan.told(cell, "scoring", done, total)
    plan.told(cell, "reading", 0, 1)
    facts = _facts(cell, plan, model, loaded)
    began = time.perf_counter()
    try:
        try:
            of_cell = tasks.of(cell, loaded.tokenizer)
        except ValueError as error:
            raise _NoData(str(error)) from error
        outcome = harness.score(model, of_cell, cell.task, cell.limit)
    except Exception as error:
        if peers.world > 1 or context_is_lost(error):
            raise  # the others wait for this process's answers; torchrun ends them
        status, reason = ("UNSUPPORTED", str(error)) if isinstance(error, _NoData) else status_of(error)
        rows: list[dict[str, Any]] = [
            {"task": cell.task, "subtask_of": None, "shots": cell.shots, "status": status, "reason": reason}
        ]
        scores: list[Any] = [None]
    else:
        seconds = time.perf_counter() - began
        done = {"status": "PASSED", "reason": None, "seconds": seconds, "batch_used": int(model.batch_size_per_gpu)}
        rows = [{**done, **row} for row in outcome.rows]
        scores = outcome.scores
        if plan.log_samples and run is not None:
            _log_samples(run.path / "logged", cell, outcome.samples)
    if run is not None:
        for number, (row, of_row) in enumerate(zip(rows, scores, strict=True), start=1):
            stored_row = {**facts, "part": number, "parts": len(rows), **row}
            sample = {"part": number, "task": row["task"], "metric": row.get("metric"), "scores": of_row}
            run.append(stored_row, sample if of_row is not None else None)
    answers.close()
    peers.gather(None)  # everybody has closed its file
    if run is not None:
        answers.delete()


def _facts(cell: EvalCell, plan: Plan, model: LanguageModel, loaded: Loaded) -> dict[str, Any]:
    """Fields of every row of a cell."""
    config = loaded.model.config
    kinds = getattr(config, "kinds", None)
    return {
        "cell": cell.id,
        "model": cell.model,
        "weights": cell.weights,
        "attention": config.attention if kinds else config.model_type,
        "window": config.window if getattr(config, "has_window", False) else None,
        "window_set": cell.window,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "reads": model.max_length,
        "data": cell.data,
        "limit": cell.limit,
        "asked": cell.task,
        "batch": plan.batch,
        "processes": model.peers.world,
        "device": plan.device_name,
        "seed": harness.SEEDS["fewshot"],
    }


def _log_samples(folder: Path, cell: EvalCell, samples: dict[str, list[dict[str, Any]]]) -> None:
    """lm-eval's log of each example: the document, the prompts, what the model answered and what it scored."""
    folder.mkdir(exist_ok=True)
    for task, of_task in samples.items():
        with open(folder / f"{cell.id}-{task}.jsonl", "w", encoding="utf-8") as file:
            for one in of_task:
                file.write(json.dumps(one, ensure_ascii=False, default=str) + "\n")
