"""Timing the candidate configurations of the Triton kernels against each other and the default, on one shape.

Each candidate must give what the default gives before it is timed; then all take turns (rounds.py). The backward is
timed whole, with one of its two kernels changed at a time: the other one costs every candidate the same.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmabench.gates.numeric import row_error
from dmabench.kernels import dma_triton
from dmabench.kernels.dma_triton import ahead, configs, ops
from dmabench.kernels.dma_triton.configs import Configs
from dmabench.kernels.dma_triton.tuned import Config
from dmabench.timing.clock import CpuClock, CudaClock
from dmabench.timing.rounds import interleave
from dmabench.timing.subjects import Timed
from dmabench.workload.inputs import Inputs

DEFAULT, READY, DROPPED, WRONG, TIMED = "default", "ready", "dropped", "wrong", "timed"
BETTER = 0.99
"""A winner takes at most this part of the default's time: less is noise, and the default stays."""
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A configuration of one kernel, and what is known of it."""

    kernel: str
    """A field of Configs."""
    config: Config
    is_default: bool = False
    status: str = READY
    """READY to be timed, DROPPED before it ran, WRONG, or TIMED."""
    why: str = ""
    taken: ahead.Taken | None = None
    ms: float | None = None
    """Median milliseconds of the forward, or of the whole backward."""


def look_ahead(
    candidate: Candidate, head_dim: int, dtype: torch.dtype, capability: int, shared_memory: int
) -> Candidate:
    """The candidate with what it takes, compiled for a card that need not be here; DROPPED where it does not compile,
    does not fit, or spills in a loop. The default is never dropped: everything is compared with it."""
    try:
        compiled = ahead.compile_ahead(candidate.kernel, candidate.config, head_dim, dtype, capability)
        taken = ahead.taken(compiled)
    except Exception as error:  # triton, LLVM and ptxas have kinds of their own
        told = f"does not compile: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        return replace(candidate, status=DROPPED, why=told)
    why = ""
    if taken.shared > shared_memory:
        why = f"does not fit: {taken.shared / 1024:.0f} KiB of shared memory, a block may take {shared_memory >> 10}"
    elif taken.spills:
        why = f"spills: {taken.spills} accesses of local memory in its loops"
    dropped = bool(why) and not candidate.is_default
    return replace(candidate, taken=taken, why=why, status=DROPPED if dropped else READY)


class Work:
    """The forward and the backward of one shape, as the Triton backend runs them."""

    def __init__(self, inputs: Inputs, delta: str, window: int):
        self.inputs = inputs
        self._plan, self._delta = inputs.plan(delta, window), inputs.delta(delta, window)
        self._saved = self._run_forward(backward=True)

    def _structures(self, backward: bool) -> tuple[Tensor | None, ...]:
        """For the configurations in force; the plan keeps what it made."""
        x = self.inputs
        groups = x.q.shape[1] // x.k.shape[1]
        return dma_triton.structures(self._plan, self._delta, backward, x.q.shape[3], x.q.dtype, groups)

    def _run_forward(self, backward: bool) -> tuple[Tensor, Tensor, Tensor]:
        x = self.inputs
        with torch.no_grad():
            return ops.forward(x.q, x.k, x.v, self._delta, *self._structures(backward), x.scale)

    def __call__(self, kernel: str) -> dict[str, Tensor]:
        """What the pass that holds the kernel computes, by name."""
        x = self.inputs
        if kernel == "forward":
            return dict(zip(("out", "lse"), self._run_forward(backward=False), strict=False))
        out, _, relative_lse = self._saved
        given = (x.dout, x.q, x.k, x.v, self._delta, *self._structures(backward=True), out, relative_lse, x.scale)
        with torch.no_grad():
            return dict(zip(("dq", "dk", "dv", "ddelta"), ops.backward(*given), strict=True))


class _Subject(Timed):
    def __init__(self, run: Callable[[str], Tensors], kernel: str, chosen: Configs):
        super().__init__()
        self._run, self._kernel, self._chosen = run, kernel, chosen

    def call_region(self) -> Any:
        with configs.forced(self._chosen):
            return self._run(self._kernel)


def _with(base: Configs, kernel: str, config: Config) -> Configs:
    changed: dict[str, Any] = {kernel: config}
    return replace(base, **changed)


def measure(
    run: Callable[[str], Tensors],
    base: Configs,
    candidates: Sequence[Candidate],
    clock: CpuClock | CudaClock,
    cap_s: float,
    dtype: torch.dtype,
    head_dim: int,
    told: Callable[[str], None] = lambda _: None,
) -> list[Candidate]:
    """The candidates of one kernel that are READY, the default among them, checked against it and timed.

    Args:
        run: kernel -> outputs by name, with the configurations in force.
        base: the default configurations.
        cap_s: seconds of sampling a candidate.
        told: is given a sentence as each is begun.
    """
    found = {number: one for number, one in enumerate(candidates)}
    ready = [number for number, one in found.items() if one.status == READY]
    subjects = {
        str(number): _Subject(run, found[number].kernel, _with(base, found[number].kernel, found[number].config))
        for number in ready
    }
    expected: dict[str, Tensors] = {}
    for number in sorted(ready, key=lambda number: not found[number].is_default):
        one = found[number]
        told(f"{one.kernel} {words(one.config)}: compiling and checking")
        try:
            if one.kernel not in expected:
                with configs.forced(base):
                    expected[one.kernel] = {name: x.clone() for name, x in run(one.kernel).items()}
            wrong = differs(subjects[str(number)].call_region(), expected[one.kernel], dtype, head_dim)
            status = WRONG
        except Exception as error:  # out of registers or shared memory, an illegal access: whatever a launch may say
            wrong, status = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", DROPPED
        if wrong is not None:
            found[number] = replace(one, status=status, why=wrong)
            del subjects[str(number)]

    def failed(cell: str, error: Exception) -> None:
        found[int(cell)] = replace(found[int(cell)], status=DROPPED, why=f"{type(error).__name__}: {error}")

    samples = interleave(subjects, clock, cap_s, 0, lambda _: None, failed)
    for cell, taken in samples.items():
        found[int(cell)] = replace(found[int(cell)], status=TIMED, ms=statistics.median(taken.main))
    return list(found.values())


def differs(found: Tensors, expected: Tensors, dtype: torch.dtype, head_dim: int) -> str | None:
    """What is wrong with outputs that should be `expected` but for the order of sums, or None. Both may be off by the
    8 eps that the gate allows."""
    budget = 16 * torch.finfo(dtype).eps
    for name, x in found.items():
        if x.shape != expected[name].shape or x.dtype != expected[name].dtype:
            return f"{name} is {x.dtype} {tuple(x.shape)}"
        right = expected[name]
        if name == "lse":  # one number a row; -inf where a row has no key
            x, right = (one[..., None].masked_fill(one[..., None].isneginf(), 0.0) for one in (x, right))
        error = row_error(name, x, right, dtype, head_dim)
        if not error <= budget:
            return f"{name} differs from the default's by {error:.2e}, budget {budget:.2e}"
    return None


def winners(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """By kernel, the fastest of those timed; the default where none takes at most BETTER of its time."""
    best: dict[str, Candidate] = {}
    for kernel in dict.fromkeys(one.kernel for one in candidates):
        timed = [one for one in candidates if one.kernel == kernel and one.ms is not None]
        default = next((one for one in timed if one.is_default), None)
        if default is None or default.ms is None:
            continue
        fastest = min(timed, key=lambda one: one.ms or 0.0)
        best[kernel] = fastest if fastest.ms is not None and fastest.ms <= BETTER * default.ms else default
    return best


def words(config: Config) -> str:
    """A configuration in few words."""
    more = f", {config.heads} heads" * (config.heads > 1) + ", keys ahead" * config.ahead + ", even" * config.even
    return f"{config.block_m}x{config.block_n}, {config.warps} warps, {config.stages} stages{more}"
