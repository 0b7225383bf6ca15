"""Every fused dma backend through both halves of the gate, forward and backward, over every pair of settings.

All settings together would be 37632 cells. Faults come from a value or from two values that meet, so a covering array
serves: few cells, in which every two values of any two settings meet. It is made in two steps, shapes first, since
FlexAttention compiles for seconds at each shape: a shape has two cells or so. One test is one shape, so that
`pytest -n 4 tests/dmabench/test_gpu_gate.py` spreads them over processes on one card.
"""

import itertools
import random
import re
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch

from dmabench.gates.kernel import Gate
from dmabench.kernels import Plan, registry
from dmabench.timing.subjects import Call
from dmabench.workload.cells import DELTAS, Cell, Shape
from dmabench.workload.inputs import PADDINGS, Inputs

ALL = None
"""A window as long as the sequence."""
SHAPES = {
    "seqlen": (1, 37, 1000, 8191, 8192, 32768, 131072),
    "head_dim": (64, 96, 128, 256),
    "groups": (1, 2, 4, 8),
    "batch": (1, 3),
    "dtype": ("fp16", "bf16"),
}
CASES = {"window": (1, 100, 1024, ALL), "delta": DELTAS, "padding": (None, *PADDINGS)}
BACKENDS = ("flex", "triton", "cuda")
COUNT = 30
"""How many shapes the array has; a test below compares."""

DOCUMENTED = {"cuda": ((64, 128), r"the CUDA kernels exist for head dimensions 64 and 128, not \d+")}
"""Backend -> the head dimensions it takes and how it refuses the others. Whatever else is refused fails."""

Setting = dict[str, Any]


def _fits(shape: Setting) -> bool:
    """Long sequences have few and narrow heads, so that memory and the time of dense windows stay in bounds."""
    return shape["seqlen"] < 32768 or shape["batch"] * shape["groups"] * shape["head_dim"] <= 512


def _rows(factors: dict[str, tuple]) -> list[Setting]:
    """All settings, shuffled, so that of equally good ones not always the first value of everything is taken."""
    rows = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    random.Random(0).shuffle(rows)
    return rows


def _pairs(row: Setting) -> set[tuple]:
    return set(itertools.combinations(row.items(), 2))


def _all_pairs(factors: dict[str, tuple]) -> set[tuple]:
    values = [[(name, value) for value in among] for name, among in factors.items()]
    return {pair for a, b in itertools.combinations(values, 2) for pair in itertools.product(a, b)}


def _cover(wanted: set[tuple], offers: Iterable[list[Setting]]) -> list[Setting]:
    """Greedy: from each list offered, the setting in which most of the wanted pairs meet that have not met yet (of
    equals the first); until all have met."""
    chosen: list[Setting] = []
    for offered in offers:
        if not wanted:
            break
        best = max(offered, key=lambda row: len(_pairs(row) & wanted))
        wanted = wanted - _pairs(best)
        chosen.append(best)
    return chosen


@cache
def _array() -> list[list[Setting]]:
    """Cells by shape: every two values of any two settings meet in one of them."""
    shapes = [row for row in _rows(SHAPES) if _fits(row)]
    shapes = _cover(_all_pairs(SHAPES), itertools.repeat(shapes))
    by_shape = [[{**shape, **case} for case in _rows(CASES)] for shape in shapes]
    everything = [cell for cells in by_shape for cell in cells]
    # Each shape gets a cell first, so that the pairs within shapes meet.
    offers = itertools.chain(by_shape, itertools.repeat(everything))
    cells = _cover(_all_pairs({**SHAPES, **CASES}), offers)
    return [[cell for cell in cells if shape.items() <= cell.items()] for shape in shapes]


def _cell(setting: Setting, backend: str, device: str, seed: int) -> Cell:
    T, B, groups = setting["seqlen"], setting["batch"], setting["groups"]
    kv_heads = 2 if T <= 8192 and B * groups <= 8 else 1
    shape = Shape(
        "fwd+bwd", "kernel", T, B, groups * kv_heads, kv_heads, setting["head_dim"], setting["dtype"], seed, device
    )
    return Cell("dma", backend, shape, T if setting["window"] is ALL else setting["window"], setting["delta"])


def _check(setting: Setting, backends: Iterable[str], device: str, seed: int) -> dict[str, str | None]:
    """Both halves of the gate, forward and backward and then the forward alone: backend -> why it refuses, or None.

    Raises:
        AssertionError: a backend that is wrong, or that refuses what it does not say it refuses.
    """
    start = time.perf_counter()
    refusals: dict[str, str | None] = {}
    wrong = []
    inputs = Inputs(_cell(setting, "", device, seed).shape, padding=setting["padding"])
    gate = Gate(inputs, backward=True)
    for name in backends:
        cell = _cell(setting, name, device, seed)
        call = Call(registry.get(cell.name), cell, inputs.scale)
        refusals[name] = call.backend.refusal(call.problem)
        if refusals[name]:
            taken, reason = DOCUMENTED.get(name, ((), "(?!)"))
            if setting["head_dim"] in taken or not re.fullmatch(reason, refusals[name]):
                wrong.append(f"{name} refuses: {refusals[name]}")
            continue
        plan = inputs.plan(cell.delta, cell.window)
        call.backend.prepare(plan=plan, delta=inputs.delta(cell.delta, cell.window), problem=call.problem)
        gate.backward = True
        found = gate.check(call, "dma", cell.window, cell.delta, plan).wrong
        gate.backward = False  # without gradients a backend may take another path
        found = found or gate.recheck(call, "dma", cell.window, cell.delta, plan).wrong
        if found:
            wrong.append(f"{name}: {found}")
        print(f"{time.perf_counter() - start:6.1f} s  {name:7} {found or 'passed'}  {setting}", flush=True)
    assert not wrong, "\n".join([str(setting), *wrong])
    return refusals


def test_every_two_values_meet():
    array = _array()
    cells = [cell for cells in array for cell in cells]
    assert len(array) == COUNT and 49 <= len(cells) <= 64  # 7 lengths times 7 distributions is the least
    factors = {**SHAPES, **CASES}
    for (one, values), (other, others) in itertools.combinations(factors.items(), 2):
        for value, another in itertools.product(values, others):
            assert any(cell[one] == value and cell[other] == another for cell in cells), (one, value, other, another)
    assert all(_fits(cell) for cell in cells)
    assert all(len({tuple(cell[name] for name in SHAPES) for cell in cells}) == 1 for cells in array)


def test_the_reference_goes_the_same_way_on_a_cpu():
    small = [cell for cells in _array() for cell in cells if cell["seqlen"] < 1000 and cell["head_dim"] <= 96]
    by_padding = {cell["padding"]: cell for cell in small}
    assert set(by_padding) == {None, *PADDINGS}
    for seed, setting in enumerate(by_padding.values()):
        assert _check(setting, ["reference"], "cpu", seed) == {"reference": None}


def test_a_wrong_or_undocumented_answer_is_reported(monkeypatch):
    setting = {"seqlen": 37, "head_dim": 64, "groups": 2, "batch": 1, "dtype": "fp16"}
    setting |= {"window": 5, "delta": "constant", "padding": "left"}
    attend = registry.get("dma/reference").attend

    def ignores_padding(q, k, v, *, delta, plan, scale):
        evict = torch.where(plan.live_BGT, plan.evict_BGT, plan.key_len)
        return attend(q, k, v, delta=delta, plan=Plan(plan.window, plan.query_len, evict, plan.finite), scale=scale)

    wide = registry.Backend("dma", "wide", attend, refuses=lambda problem: "too wide")
    ignorant = registry.Backend("dma", "ignorant", ignores_padding)
    monkeypatch.setattr(registry, "get", {"dma/wide": wide, "dma/ignorant": ignorant}.__getitem__)
    with pytest.raises(AssertionError, match="wide refuses: too wide"):
        _check(setting, ["wide"], "cpu", 0)
    with pytest.raises(AssertionError, match=r"ignorant: \w+ (is off by|counts)"):
        _check(setting, ["ignorant"], "cpu", 0)
    assert _check({**setting, "padding": None}, ["ignorant"], "cpu", 0) == {"ignorant": None}


@pytest.mark.gpu
@pytest.mark.timeout(300)  # four processes on one card slow one another down
@pytest.mark.parametrize("number", range(COUNT))
def test_every_backend_passes(number):
    passed = []
    for seed, setting in enumerate(_array()[number]):
        refusals = _check(setting, BACKENDS, "cuda", seed)
        torch.cuda.empty_cache()
        passed += [name for name, refusal in refusals.items() if refusal is None]
    assert {"flex", "triton"} <= set(passed)
