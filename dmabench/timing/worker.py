"""`python -m dmabench.timing.worker`: groups of cells, measured for a parent that a crash cannot take down.

Reads one JSON request a line on stdin and answers with JSON lines on stdout: `begin` (cell and stage, before anything
that may crash), `row` (a finished cell) and `done`. Everything else that is printed goes to stderr.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from dmabench.errors import Refusal
from dmabench.gates.numeric import Verdict
from dmabench.gates.of_shape import Gates
from dmabench.kernels import Backend, Unsupported, backends
from dmabench.kernels.native_sparse import settings_for
from dmabench.store.environment import available_memory
from dmabench.store.failures import context_is_lost, status_of
from dmabench.store.rows import failure, success
from dmabench.timing.clock import make_clock, measured_roofs
from dmabench.timing.further_subjects import AnySubject, DecodeSubject, make_subject
from dmabench.timing.rounds import Samples, interleave
from dmabench.timing.work import settings_text, work_of
from dmabench.workload.attentions import problem_of
from dmabench.workload.cells import Cell
from dmabench.workload.inputs import Inputs

Emit = Callable[[dict[str, Any]], None]
RESTART = 17
"""Exit code that asks the parent for a fresh worker: the CUDA context is lost."""

_roofs: dict[tuple[str, torch.dtype], dict[str, float]] = {}


def measure(cells: list[Cell], options: dict[str, Any], emit: Emit) -> None:
    """Gate, then time, all cells of one shape; emits a row for each.

    Args:
        options: cap_s (seconds of sampling a cell), delta_files (label -> path), replay (time CUDA graphs).
    """
    shape = cells[0].shape
    inputs = Inputs(shape, options.get("delta_files", {}))
    gates = Gates(inputs)
    subjects: dict[str, AnySubject] = {}
    facts: dict[str, dict[str, Any]] = {}

    def failed(cell: Cell, error: Exception) -> None:
        emit({"event": "row", "row": failure(cell, *status_of(error))})
        _leave_if_broken(error)

    for cell in cells:
        emit({"event": "begin", "cell": cell.id, "stage": "check"})
        try:
            backend = _backend(cell)
            subject = make_subject(backend, cell, inputs)
            _refuse(backend, cell)
            verdict, facts[cell.id] = _check(cell, backend, subject, gates, inputs)
        except Exception as error:
            failed(cell, error)
        else:
            if verdict.wrong:
                emit({"event": "row", "row": failure(cell, "INCORRECT", verdict.wrong, verdict)})
            else:
                subjects[cell.id] = subject
        _free()
    if options.get("replay"):
        for cell in cells:
            if cell.id in subjects:
                emit({"event": "begin", "cell": cell.id, "stage": "capture"})
                try:
                    subjects[cell.id].capture()
                except Exception as error:
                    del subjects[cell.id]
                    failed(cell, error)
    if not subjects:
        return

    key = (shape.device, inputs.dtype)
    if key not in _roofs:
        _roofs[key] = measured_roofs(*key)
    by_id = {cell.id: cell for cell in cells}
    samples = interleave(
        subjects,
        make_clock(shape.device),
        options["cap_s"],
        shape.seed,
        lambda cell: emit({"event": "begin", "cell": cell, "stage": "timing"}),
        lambda cell, error: failed(by_id[cell], error),
    )
    for cell_id, taken in samples.items():
        cell, subject = by_id[cell_id], subjects[cell_id]
        emit({"event": "begin", "cell": cell_id, "stage": "check after timing"})
        try:
            after = subject.check(gates, again=True)
        except Exception as error:
            failed(cell, error)
            continue
        if after.wrong:
            emit({"event": "row", "row": failure(cell, "INCORRECT", f"after timing: {after.wrong}", after)})
        else:
            how = {"replayed": bool(options.get("replay"))}
            emit(_row(cell, taken, facts[cell_id] | _roofs[key] | how))
    _free()


def _check(
    cell: Cell, backend: Backend, subject: AnySubject, gates: Gates, inputs: Inputs
) -> tuple[Verdict, dict[str, Any]]:
    """The gate's verdict, and what the first calls tell: seconds to compile, peak memory, executed pairs."""
    subject.ready()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subject.ready()
        subject.region()
        _synchronize(inputs)
        seconds.append(time.perf_counter() - start)
    subject.release()  # else the forward that is still held would be subtracted from the peak
    facts: dict[str, Any] = {"compile_s": max(0.0, seconds[0] - seconds[1]), "peak_mib": _peak_mib(subject, inputs)}
    plan, problem = subject.plan(), problem_of(cell)
    if plan is not None:
        facts["executed_pairs"] = backend.executed_pairs(plan=plan, problem=problem)
        facts["live_keys"] = int(plan.live_count_BG.sum())
    facts["padded_heads"] = backend.padded_heads(problem)
    if cell.function == "nsa":
        facts["settings"] = settings_text(settings_for(cell.window))
    if isinstance(subject, DecodeSubject):
        facts["cache_bytes"] = subject.cache_bytes
        facts["cache_mib"] = subject.cache_bytes / 2**20
    verdict = subject.check(gates)
    facts |= {"error": verdict.error, "error_budget": verdict.budget}
    return verdict, facts


def _peak_mib(subject: AnySubject, inputs: Inputs) -> float | None:
    """Peak device memory of the pass, its inputs and its cache included, the harness's own buffers left out; None on a
    CPU."""
    if torch.device(inputs.shape.device).type != "cuda":
        return None
    _free()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    subject.ready()
    result = subject.region()
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before
    del result
    subject.release()
    given = sum(x.numel() * x.element_size() for x in subject.tensors)
    cache = subject.cache_bytes if isinstance(subject, DecodeSubject) else 0
    return (used + given + cache) / 2**20


def _row(cell: Cell, samples: Samples, facts: dict[str, Any]) -> dict[str, Any]:
    work = work_of(cell, facts.pop("executed_pairs", None), facts.pop("cache_bytes", None))
    row, raw = success(cell, samples, facts, work)
    return {"event": "row", "row": row, "samples": raw}


def _backend(cell: Cell) -> Backend:
    return next(backend for backend in backends() if backend.id == cell.name)


def _refuse(backend: Backend, cell: Cell) -> None:
    """Raise what can be known without running: unsupported, or a T x T workspace that does not fit."""
    problem = problem_of(cell)
    refusal = backend.refusal(problem)
    if refusal:
        raise Unsupported(refusal)
    needed, free = backend.workspace(problem), _free_bytes(problem.device)
    if problem.backward:
        needed *= 2
    if needed > free:
        raise MemoryError(f"needs {needed / 2**30:.0f} GiB for T x T tensors, {free / 2**30:.0f} GiB are free")


def _free_bytes(device: str) -> int:
    if device == "cuda":
        _free()
        return torch.cuda.mem_get_info()[0]
    known = available_memory()
    return 1 << 62 if known is None else known  # where it is not known, let the call try


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _synchronize(inputs: Inputs) -> None:
    if torch.device(inputs.shape.device).type == "cuda":
        torch.cuda.synchronize()


def _leave_if_broken(error: Exception) -> None:
    """Let the parent start another process where this one can do nothing more."""
    if context_is_lost(error):
        sys.stdout.flush()
        os._exit(RESTART)


def main() -> None:
    """Serve requests until stdin closes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not mix with the answers
    warnings.filterwarnings("ignore")

    def emit(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    for line in sys.stdin:
        request = json.loads(line)
        try:
            measure([Cell.from_settings(cell) for cell in request["cells"]], request["options"], emit)
            emit({"event": "done"})
        except Refusal as refusal:
            emit({"event": "refusal", "reason": str(refusal)})


if __name__ == "__main__":
    main()
