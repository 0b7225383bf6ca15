"""The short convolution: a causal depthwise filter on the input of an attention, the same for every kind."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        if tail is None and x_BTC.dtype == self.weight.dtype:
            filtered: Tensor = _Filter.apply(x_BTC, self.weight)
            return filtered
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


class _Filter(torch.autograd.Function):
    """The filter of whole sequences in as few passes over them as plain operations allow: a training step of a small
    model is bound by memory, and the copies and products of `forward` above are a fifth of what it moves."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTC, weight)
        T, width = x_BTC.shape[1], weight.shape[1]
        y = x_BTC * (1 + weight[:, -1])
        for back in range(1, min(width, T)):
            y[:, back:].addcmul_(x_BTC[:, : T - back], weight[:, width - 1 - back])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (dy,), (x_BTC, weight) = grads, ctx.saved_tensors
        T, width = x_BTC.shape[1], weight.shape[1]
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = dy * (1 + weight[:, -1])
            for back in range(1, min(width, T)):
                dx[:, : T - back].addcmul_(dy[:, back:], weight[:, width - 1 - back])
        if ctx.needs_input_grad[1]:
            taps = [(dy[:, back:] * x_BTC[:, : T - back]).sum((0, 1)) for back in reversed(range(min(width, T)))]
            dweight = torch.cat([weight.new_zeros(weight.shape[0], max(0, width - T)), torch.stack(taps, 1)], 1)
        return dx, dweight
