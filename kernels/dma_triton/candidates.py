"""What `dmabench tune` tries beside the default: for each kernel the configurations that were among the fastest on a
card, and those that no card has judged, best guesses first.

Those that spill, or do not fit the card, are dropped there by compiling them; nothing here is taken by a call. Why
these: results/LOG.md, 2026-11-30 and 2026-12-01.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dmabench.kernels.dma_triton.tuned import Config

# block_m, block_n, warps, stages, heads, ahead, even. By head dimension as the kernels see it, half precision.
_BY_QUERY: dict[int, list[tuple[Any, ...]]] = {
    64: [
        (128, 64, 4, 2, 1, False), (128, 64, 4, 3, 1, True), (128, 64, 8, 3, 1, True), (64, 64, 4, 3, 1, True),
        (128, 64, 8, 3, 2, True), (128, 32, 8, 3, 2, True),
    ],
    128: [
        (128, 32, 4, 2, 1, True), (64, 64, 4, 2, 1, True), (64, 32, 4, 3, 1, True), (64, 32, 4, 2, 2, True),
        (128, 64, 8, 3, 1, True), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 8, 3, 2, True),
    ],
    256: [
        (128, 32, 8, 2, 1, True), (128, 32, 8, 3, 1, True), (64, 32, 4, 2, 1, True), (64, 32, 8, 3, 2, True),
    ],
}  # fmt: skip
_QUERIES: dict[int, list[tuple[Any, ...]]] = {
    64: [*_BY_QUERY[64], (128, 64, 8, 2, 1, True)],
    128: [
        (64, 64, 4, 2, 1, True), (64, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2, 1, True), (64, 32, 4, 3, 1, True),
        (64, 64, 8, 2, 2, True),
    ],
    256: [(64, 32, 4, 2, 1, True), (64, 32, 8, 2, 2, True), (64, 32, 8, 2, 1, True), (64, 16, 4, 2, 1, True)],
}  # fmt: skip
_KEYS: dict[int, list[tuple[Any, ...]]] = {
    64: [
        (64, 128, 8, 2, 1, False, True), (64, 64, 4, 2, 1, False, True), (64, 64, 4, 3, 1, False, True),
        (64, 64, 8, 2, 1, False, True), (64, 128, 8, 2), (64, 64, 4, 3), (128, 64, 8, 2),
    ],
    128: [
        (32, 64, 4, 2, 1, False, True), (32, 64, 4, 3, 1, False, True), (32, 128, 8, 2, 1, False, True), (32, 64, 4, 2),
        (32, 64, 4, 3),
    ],
    256: [(16, 64, 4, 2), (16, 64, 8, 2), (32, 64, 8, 3), (32, 32, 4, 2), (64, 64, 8, 2)],
}  # fmt: skip


def candidates(kernel: str, head_dim: int) -> list[Config]:
    """For "forward", "queries" or "keys", fp16 and bf16.

    Args:
        head_dim: as the kernels see it (configs.block_d); those below 64 take the candidates of 64.
    """
    tables: dict[str, Mapping[int, Sequence[tuple[Any, ...]]]]
    tables = {"forward": _BY_QUERY, "queries": _QUERIES, "keys": _KEYS}
    return [Config(*one) for one in tables[kernel][max(64, head_dim)]]
