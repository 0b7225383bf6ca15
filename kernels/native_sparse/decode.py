"""One query: read the summaries, the selected blocks and the window, and nothing else of the cache."""

import torch
from torch import Tensor

from dmabench.kernels.native_sparse.compression import compress
from dmabench.kernels.native_sparse.selection import block_scores, choose
from dmabench.kernels.native_sparse.settings import Settings
from dmabench.kernels.products import weighted_sum, wide_product


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    settings: Settings,
    scale: float,
    *,
    compressed: tuple[Tensor, Tensor] | None = None,
    blocks: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """`reference.attend` for q [B, H, 1, D], in O(C + n l' + w) reads where `compressed` is given.

    Sums are in at least float32. No operation waits for the device, so a CUDA graph can hold the step.
    """
    G, Tk = k.shape[1], k.shape[2]
    position = torch.full((1,), Tk - 1, device=q.device) if positions is None else positions
    position = position.reshape(-1, 1, 1)  # [B or 1, 1, 1]
    q_BGgD, gates_BGg3 = (x[:, :, 0].unflatten(1, (G, -1)) for x in (q, gates))

    kc, vc = (compress(x, settings) for x in (k, v)) if compressed is None else compressed
    ends = settings.compress_block - 1 + settings.compress_stride * torch.arange(kc.shape[2], device=q.device)
    out, probabilities = _attend(q_BGgD, kc, vc, ends <= position, scale)
    out = gates_BGg3[..., :1] * out

    if blocks is None:
        scores = block_scores(probabilities.detach().sum(2), settings, settings.selectable_len(Tk))
        blocks = choose(scores[:, :, None], position[:, 0], settings)
    within = torch.arange(settings.select_block, device=q.device)
    keys = (blocks[:, :, 0, :, None].long() * settings.select_block + within).flatten(2)  # none is negative
    selected, _ = _attend(q_BGgD, *_gather(k, v, keys), (keys >= 0) & (keys <= position), scale)
    out = out + gates_BGg3[..., 1:2] * selected

    reach = min(settings.window, Tk)
    if positions is None:
        window, _ = _attend(q_BGgD, k[:, :, Tk - reach :], v[:, :, Tk - reach :], None, scale)
    else:
        keys = (position - torch.arange(reach, device=q.device)).expand(k.shape[0], G, reach)
        window, _ = _attend(q_BGgD, *_gather(k, v, keys), keys >= 0, scale)
    out = out + gates_BGg3[..., 2:] * window
    return out.flatten(1, 2)[:, :, None].to(q.dtype)


def _gather(k: Tensor, v: Tensor, keys_BGK: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at these positions; those out of range give any row, for a mask to hide."""
    index = keys_BGK.clamp(0, k.shape[2] - 1)[..., None]
    return tuple(x.gather(2, index.expand(-1, -1, -1, x.shape[-1])) for x in (k, v))  # type: ignore[return-value]


def _attend(
    q_BGgD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, live_BGK: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, G, H/G, V] and probabilities [B, G, H/G, K]; a query without a live key gives zeros."""
    scores = wide_product(q_BGgD, k_BGKD) * scale
    if live_BGK is None:
        probabilities = scores.softmax(-1)
    else:
        live = live_BGK[:, :, None]
        empty = ~live.any(-1, keepdim=True)
        probabilities = scores.masked_fill(~(live | empty), -torch.inf).softmax(-1).masked_fill(empty, 0.0)
    return weighted_sum(probabilities, v_BGKD), probabilities
