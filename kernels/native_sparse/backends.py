"""The implementations of native sparse attention, as the registry lists them."""

from torch import Tensor

from dmabench.kernels.native_sparse import decode, fused, reference
from dmabench.kernels.native_sparse.settings import settings_for
from dmabench.kernels.registry import Backend, Problem


def _attend(q: Tensor, k: Tensor, v: Tensor, *, gates, settings, scale, blocks=None, compressed=None) -> Tensor:
    form = decode.attend if q.shape[2] == 1 else reference.attend
    return form(q, k, v, gates, settings, scale, blocks=blocks, compressed=compressed)


def _refuses(problem: Problem) -> str | None:
    try:
        settings = settings_for(problem.window)
    except ValueError as error:
        return str(error)
    if problem.key_len < settings.select_block:
        return (
            f"{problem.key_len} tokens are less than one block of {settings.select_block}: there is nothing to "
            "compress or select; use a longer sequence or a smaller window"
        )
    return None


def _refuses_fused(problem: Problem) -> str | None:
    return _refuses(problem) or fused.refuses(problem, settings_for(problem.window))


BACKENDS = [
    Backend("nsa", "reference", _attend, passes=("fwd", "bwd", "fwd+bwd", "decode"), refuses=_refuses),
    Backend(
        "nsa",
        "fla",
        fused.attend,
        missing=fused.missing,
        refuses=_refuses_fused,
        padded_heads=fused.padded_heads,
    ),
]
