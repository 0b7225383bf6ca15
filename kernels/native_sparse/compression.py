"""Compressed keys and values: one vector for each block of tokens (arXiv 2502.11089, equations 7 and 8)."""

from collections.abc import Callable

from torch import Tensor

from dmabench.kernels.native_sparse.settings import Settings

Compressor = Callable[[Tensor], Tensor]
"""[B, G, C, l, D], the tokens of C blocks -> [B, G, C, D]. A learned one is a module with its position encoding."""


def mean(blocks_BGClD: Tensor) -> Tensor:
    """The average of a block's tokens. The default, where the paper learns an MLP: it adds no parameters that other
    attentions lack, and it is what fla-core computes, so that all backends compute the same function."""
    return blocks_BGClD.mean(3)


def compress(x_BGTD: Tensor, settings: Settings, compressor: Compressor = mean) -> Tensor:
    """[B, G, T, D] -> [B, G, C, D] for the C complete blocks of l tokens that start every d tokens; C is 0 where T < l.

    Compressed key c stands for the tokens [c d, c d + l): a query may see it from position c d + l - 1 on.
    """
    if not settings.compressed_len(x_BGTD.shape[2]):
        return x_BGTD[:, :, :0]
    blocks = x_BGTD.unfold(2, settings.compress_block, settings.compress_stride)
    return compressor(blocks.transpose(-1, -2))
