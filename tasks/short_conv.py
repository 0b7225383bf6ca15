"""The short convolution: a causal depthwise filter on the input of an attention, the same for every kind."""

import torch
from torch import Tensor, nn

from dmabench.tasks.cache import Tail
from dmabench.tasks.padding import Padding


class ShortConv(nn.Module):
    """`y_t = x_t + sum_i weight[:, i] * x_{t - width + 1 + i}`, with zeros before the first token.

    It acts on the normalised input of the attention (not on q, k, v, which MLA does not have), so its parameters,
    width x hidden_size a layer, and what it can do are equal for all kinds. The sum is added to its input, so that
    a layer starts near what it is without the filter.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, width))

    def forward(self, x_BTC: Tensor, tail: Tail | None, padding: Padding | None) -> Tensor:
        """x_BTC in compact places, after what `tail` remembers of earlier calls."""
        history = x_BTC.new_zeros(x_BTC.shape[0], self.width - 1, x_BTC.shape[2])
        if tail is not None:
            if tail.seen:
                history = tail.last(self.width - 1)
            new = x_BTC
            if padding is not None:
                new = padding.slots(x_BTC) * padding.mask_BT[..., None]
            tail.append(new)
        T = x_BTC.shape[1]
        padded = torch.cat([history, x_BTC], 1)
        taps = [padded[:, i : i + T] * self.weight[:, i] for i in range(self.width)]
        return x_BTC + torch.stack(taps).sum(0)
