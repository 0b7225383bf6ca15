"""How much work a row stands for: density, operations and bytes, by function, pass and level.

All counting is done by kernels/cost.py; this says what to count."""

import math
from dataclasses import asdict
from typing import Any

import torch

from dmabench.kernels import Problem, cost, latent
from dmabench.kernels.native_sparse import Settings, settings_for
from dmabench.workload import layers
from dmabench.workload.attentions import problem_of
from dmabench.workload.cells import Cell


def settings_text(settings: Settings) -> str:
    """The sizes of native sparse attention, in the paper's letters."""
    sizes = (settings.compress_block, settings.compress_stride, settings.select_block, settings.select_count)
    return "l {} d {} l' {} n {} w {}".format(*sizes, settings.window)


def work_of(cell: Cell, executed_pairs: int | None, cache_bytes: int | None = None) -> dict[str, Any]:
    """density, flops, executed_flops and bytes of a cell.

    Args:
        executed_pairs: query-key pairs computed, where the backend computes more than are kept.
        cache_bytes: what decoding keeps; the part that a step reads is counted from it.
    """
    problem, what = problem_of(cell), cell.shape.pass_
    pairs = _pairs(cell, problem)
    heads = problem.batch * problem.heads
    dense = cost.kept_pairs(problem.query_len, problem.key_len, None)
    flops, executed = (_flops(cell, problem, count) for count in (heads * pairs, executed_pairs or heads * pairs))
    moved = _bytes(cell, problem, cache_bytes)
    if cell.shape.level == "layer":
        shapes = layers.weight_shapes(cell.function, cell.shape, latent.dims_for(problem))
        parameters = sum(math.prod(size) for name, size in shapes.items() if name not in ("up", "gate", "norm"))
        projections = cost.linear_flops(what, problem.batch * problem.query_len, parameters)
        flops, executed = flops + projections, executed + projections
        moved += parameters * _itemsize(problem)
    return {"density": pairs / dense, "flops": flops, "executed_flops": executed, "bytes": moved}


def _pairs(cell: Cell, problem: Problem) -> int:
    """Query-key pairs a head."""
    if cell.function == "nsa":
        settings = asdict(settings_for(cell.window))
        return cost.sparse_pairs(problem.query_len, problem.key_len, **settings).total
    return cost.kept_pairs(problem.query_len, problem.key_len, cell.window)


def _flops(cell: Cell, problem: Problem, pairs: int) -> int:
    what = cell.shape.pass_
    if cell.function == "mla":
        what, absorbed = ("fwd", True) if what == "decode" else (what, False)
        return cost.latent_flops(what, **_latent_sizes(problem), absorbed=absorbed)
    return cost.flops(what, pairs, problem.head_dim)


def _bytes(cell: Cell, problem: Problem, cache_bytes: int | None) -> int:
    """The fewest bytes that the attention moves; at the level of a layer its weights come on top."""
    what, itemsize, token = cell.shape.pass_, _itemsize(problem), problem.batch * problem.heads * problem.head_dim
    if what == "decode":
        read = cache_bytes or 0
        if cell.function == "nsa":  # all summaries, and the tokens that it selects
            read = 2 * problem.batch * problem.kv_heads * _pairs(cell, problem) * problem.head_dim * itemsize
        return read + 4 * token * itemsize
    if cell.function == "mla":
        return cost.latent_bytes_moved(what, **_latent_sizes(problem), itemsize=itemsize)
    return cost.bytes_moved(
        what,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        query_len=problem.query_len,
        key_len=problem.key_len,
        head_dim=problem.head_dim,
        itemsize=itemsize,
        biased=cell.function == "dma",
    )


def _latent_sizes(problem: Problem) -> dict[str, int]:
    sizes = {name: getattr(problem, name) for name in ("batch", "heads", "query_len", "key_len")}
    return sizes | asdict(latent.dims_for(problem))


def _itemsize(problem: Problem) -> int:
    return torch.finfo(problem.dtype).bits // 8
