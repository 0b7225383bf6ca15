"""What layers remember while they decode: all keys, the last `window` keys, or (dma) the live ones."""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dmabench.kernels import Unsupported


class State(Protocol):
    """What one attention remembers; `kernels.live_keys.LiveKeys` is one too."""

    seen: int
    """Tokens seen, padding included."""

    def reorder(self, beam_index: Tensor) -> None: ...
    def batch_repeat_interleave(self, repeats: int) -> None: ...
    def batch_select_indices(self, indices: Tensor) -> None: ...
    def crop(self, max_length: int) -> None: ...
    def reset(self) -> None: ...


class Buffers:
    """Tensors with the batch as first dim, and what a batch's rows can go through."""

    croppable = False

    def __init__(self) -> None:
        self.seen = 0
        self.held: tuple[Tensor, ...] = ()

    def reorder(self, beam_index: Tensor) -> None:
        """Row b becomes what row beam_index[b] was."""
        self.batch_select_indices(beam_index)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times in a row."""
        self.held = tuple(x.repeat_interleave(repeats, 0) for x in self.held)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        self.held = tuple(x.index_select(0, indices.to(x.device)) for x in self.held)

    def crop(self, max_length: int) -> None:
        raise Unsupported(CROP)

    def reset(self) -> None:
        """Forget everything."""
        self.seen, self.held = 0, ()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(x.nbytes for x in self.held)


CROP = (
    "a bounded cache cannot be cropped, as assisted decoding does: what it dropped would be needed again. "
    'Load the model with decode_cache="full", or pass cache=model.new_cache("full")'
)


class Growing(Buffers):
    """Tensors [B, G, T, ...] that grow along T. Copied to larger buffers now and then, so that a token costs O(1)."""

    croppable = True

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Appends n tokens; returns everything so far."""
        n = new[0].shape[2]
        total = self.seen + n
        if not self.held:
            self.held = tuple(x.new_empty(*x.shape[:2], total, *x.shape[3:]) for x in new)
        if total > self.held[0].shape[2]:
            capacity = total + total // 4 + 64
            grown = tuple(x.new_empty(*x.shape[:2], capacity, *x.shape[3:]) for x in self.held)
            for larger, held in zip(grown, self.held, strict=True):
                larger[:, :, : self.seen] = held[:, :, : self.seen]
            self.held = grown
        for held, x in zip(self.held, new, strict=True):
            held[:, :, self.seen : total] = x
        self.seen = total
        return tuple(x[:, :, :total] for x in self.held)

    def crop(self, max_length: int) -> None:
        """Forget all but the first `max_length` tokens."""
        self.seen = min(self.seen, max_length)


class Ring(Buffers):
    """k and v of the last `window` tokens, [B, G, window, D]: the token at position p is in slot p % window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def append(self, *new: Tensor) -> None:
        """n new tokens, of which the last `window` stay."""
        n = new[0].shape[2]
        if not self.held:
            self.held = tuple(x.new_zeros(*x.shape[:2], self.window, *x.shape[3:]) for x in new)
        kept = min(n, self.window)
        slots = torch.arange(self.seen + n - kept, self.seen + n, device=new[0].device) % self.window
        for held, x in zip(self.held, new, strict=True):
            held.index_copy_(2, slots, x[:, :, n - kept :])
        self.seen += n

    def positions(self) -> Tensor:
        """int64 [filled slots]: the position of each slot's token."""
        filled = min(self.seen, self.window)
        slot = torch.arange(filled, device=self.held[0].device)
        return slot + (self.seen - 1 - slot) // self.window * self.window

    def in_order(self) -> tuple[Tensor, ...]:
        """What is held, the earliest token first."""
        order = self.positions().argsort()
        return tuple(x.index_select(2, order) for x in self.held)


class Tail(Buffers):
    """The last `count` of tensors [B, T, C]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def append(self, x_BTC: Tensor) -> None:
        """Appends tokens; `count` of them stay."""
        before = self.held[0] if self.held else x_BTC.new_zeros(x_BTC.shape[0], self.count, x_BTC.shape[2])
        x = torch.cat([before, x_BTC], 1)
        self.held = (x[:, x.shape[1] - self.count :],)
        self.seen += x_BTC.shape[1]

    def last(self, count: int) -> Tensor:
        """The last `count` tokens, [B, count, C]; zeros before the first."""
        return self.held[0][:, -count:] if count else self.held[0][:, :0]


class WholeTail(Tail):
    """A tail that keeps everything, and so can be cropped."""

    croppable = True

    def append(self, x_BTC: Tensor) -> None:
        self.held = (torch.cat([self.held[0], x_BTC], 1) if self.held else x_BTC,)
        self.seen += x_BTC.shape[1]

    def last(self, count: int) -> Tensor:
        x = self.held[0]
        missing = max(0, count - x.shape[1])
        return torch.nn.functional.pad(x[:, max(0, x.shape[1] - count) :], (0, 0, missing, 0))

    def crop(self, max_length: int) -> None:
        self.seen = min(self.seen, max_length)
        self.held = tuple(x[:, : self.seen] for x in self.held)


class LayerCache(CacheLayerMixin):
    """What one layer remembers, as transformers wants to see it: its attention's state and its convolution's."""

    is_compileable = False
    supports_early_init = False

    def __init__(self, state: State, tail: Tail | None = None) -> None:
        super().__init__()
        self.state = state
        self.tail = tail

    @property
    def parts(self) -> list[Any]:
        """The states."""
        return [self.state] if self.tail is None else [self.state, self.tail]

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back."""
        return all(getattr(part, "croppable", False) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self.parts)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise TypeError("the attentions of dmabench write their own states")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError("the attentions of dmabench write their own states")

    def get_seq_length(self) -> int:
        return self.state.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.state.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        for part in self.parts:
            part.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for part in self.parts:
            part.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for part in self.parts:
            part.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        for part in self.parts:
            part.batch_select_indices(indices)

    def activate_past_recording(self) -> None:
        """Assisted decoding announces that it will crop."""
        if not self.is_croppable:
            raise Unsupported(CROP)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back that many tokens, as a number below 0."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
        if tokens_to_remove < 0:
            for part in self.parts:
                part.crop(part.seen + tokens_to_remove)


class ModelCache(Cache):
    """The layers' caches and, where a batch is padded, which of the tokens so far are real."""

    def __init__(self, layers: list[LayerCache]) -> None:
        super().__init__(layers=layers)
        self.mask_BT: Tensor | None = None
        """bool by slot; None while nothing is padded."""

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def grow_mask(self, n: int) -> None:
        """n more tokens, all real."""
        if self.mask_BT is not None:
            self.mask_BT = torch.nn.functional.pad(self.mask_BT, (0, n), value=True)

    def reset(self) -> None:
        super().reset()
        self.mask_BT = None

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.mask_BT is not None:
            self.mask_BT = self.mask_BT[:, : self.get_seq_length()]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.mask_BT is not None:
            self.mask_BT = self.mask_BT.index_select(0, beam_idx.to(self.mask_BT.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.mask_BT is not None:
            self.mask_BT = self.mask_BT.repeat_interleave(repeats, 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.mask_BT is not None:
            self.mask_BT = self.mask_BT[indices]
