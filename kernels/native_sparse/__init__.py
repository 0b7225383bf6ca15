"""Native sparse attention (NSA, arXiv 2502.11089): summaries of blocks, whole blocks that they point to, and a window.

`reference` is the definition, `decode` one query of it, `fused` the fast path through fla-core; `backends` lists them
for the registry.
"""

import torch
from torch import Tensor

from dmabench.kernels.native_sparse import decode, reference
from dmabench.kernels.native_sparse.compression import Compressor, compress, mean
from dmabench.kernels.native_sparse.settings import PAPER, Settings, settings_for
from dmabench.kernels.registry import Problem, wants_gradient

__all__ = [
    "PAPER",
    "Settings",
    "cache_bytes",
    "compress",
    "example_inputs",
    "native_sparse_attention",
    "settings_for",
]


def native_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    settings: Settings,
    *,
    scale: float | None = None,
    compressors: tuple[Compressor, Compressor] = (mean, mean),
    compressed: tuple[Tensor, Tensor] | None = None,
    positions: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of each query to compressed keys, to the blocks they select, and to a sliding window, gated and added.

    Exactly causal: a compressed key is seen from the position on at which its block is complete. The query heads of a
    group share their blocks. Sequences shorter than a block are fine: nothing is compressed yet.

    Args:
        q: [B, H, R, D], the queries at the last R of the Tk positions; k, v: [B, G, Tk, D], H a multiple of G.
        gates: [B, H, R, 3], sigmoids for the compressed, the selected and the window branch.
        settings: block sizes, count and window.
        scale: of the scores; default 1 / sqrt(D).
        compressors: what makes one vector of a block, for keys and for values: functions
            [B, G, C, l, D] -> [B, G, C, D]. The default is the mean; the paper learns an MLP.
        compressed: the compressed keys and values, [B, G, C, D] each, where the caller keeps them (decoding).
        positions: int [R] or [B, R], the queries' positions, instead of the last ones. Keys behind a query's position
            are not seen, so rows of different lengths need no mask.
        backend: "reference", "fla", or "auto": fla where it can, else reference.

    Returns:
        [B, H, R, D] in q's dtype.

    Raises:
        ValueError: shapes that do not fit.
        Unsupported: backend="fla" and it cannot; the message says why.
    """
    _check(q, k, v, gates, settings, compressed, positions)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    plain = compressors == (mean, mean) and compressed is None and positions is None
    if backend == "fla" or (backend == "auto" and plain and _takes(q, k, settings)):
        if not plain:
            raise ValueError("nsa/fla makes its own means and takes the last positions: use backend='reference'")
        from dmabench.kernels.native_sparse import fused

        return fused.attend(q, k, v, gates=gates, settings=settings, scale=scale)
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend must be 'auto', 'fla' or 'reference', got {backend!r}")
    if compressed is None and compressors != (mean, mean):
        compressed = compress(k, settings, compressors[0]), compress(v, settings, compressors[1])
    form = decode.attend if q.shape[2] == 1 else reference.attend
    return form(q, k, v, gates, settings, scale, compressed=compressed, positions=positions)


def _takes(q: Tensor, k: Tensor, settings: Settings) -> bool:
    """Whether nsa/fla is there and takes this."""
    if q.device.type != "cuda":
        return False
    from dmabench.kernels.native_sparse import fused  # here, since it brings FlexAttention, whose import takes seconds

    B, H, Tq, D = q.shape
    G, Tk = k.shape[1], k.shape[2]
    problem = Problem("cuda", q.dtype, B, H, G, Tq, Tk, D, None, wants_gradient(q, k))
    return Tk >= settings.select_block and not (fused.missing("cuda") or fused.refuses(problem, settings))


def _check(q, k, v, gates, settings, compressed, positions) -> None:
    B, H, R, D = q.shape
    G, Tk = k.shape[1], k.shape[2]
    if H % G:
        raise ValueError(f"{H} query heads are not a multiple of {G} key/value heads: groups share selected blocks")
    if R > Tk:
        raise ValueError(f"{R} queries but {Tk} keys: the queries are the last of the keys' positions")
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "k": (k, (B, G, Tk, D)),
        "v": (v, (B, G, Tk, v.shape[-1])),
        "gates": (gates, (B, H, R, 3)),
    }
    if compressed is not None:
        C = settings.compressed_len(Tk)
        expected["compressed keys"] = (compressed[0], (B, G, C, D))
        expected["compressed values"] = (compressed[1], (B, G, C, v.shape[-1]))
    if positions is not None:
        expected["positions"] = (positions, (R,) if positions.dim() == 1 else (B, R))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} beside q {tuple(q.shape)}, got {tuple(tensor.shape)}")


def example_inputs(problem: Problem, generator: torch.Generator) -> dict[str, Tensor]:
    """Random tensors for `attend`, by argument name: q, k, v and the gates; all of them have gradients. The settings
    are `settings_for(problem.window)`.

    Args:
        generator: on the problem's device.

    Returns:
        q [B, H, Tq, D], k and v [B, G, Tk, D], gates [B, H, Tq, 3] in (0, 1), in the problem's dtype.
    """
    B, Tq, Tk, D = problem.batch, problem.query_len, problem.key_len, problem.head_dim
    shapes = {
        "q": (B, problem.heads, Tq, D),
        "k": (B, problem.kv_heads, Tk, D),
        "v": (B, problem.kv_heads, Tk, D),
        "gates": (B, problem.heads, Tq, 3),
    }
    drawn = {name: torch.randn(shape, generator=generator, device=problem.device) for name, shape in shapes.items()}
    return {name: (x.sigmoid() if name == "gates" else x).to(problem.dtype) for name, x in drawn.items()}


def cache_bytes(problem: Problem, settings: Settings | None = None) -> int:
    """Bytes of the decoding cache after key_len tokens: all keys and values, and their summaries.

    Args:
        settings: default `settings_for(problem.window)`.
    """
    settings = settings or settings_for(problem.window)
    rows = problem.key_len + settings.compressed_len(problem.key_len)
    return 2 * problem.batch * problem.kv_heads * rows * problem.head_dim * torch.finfo(problem.dtype).bits // 8
