"""The memory of LiveKeys: `window` slots a head, allocated once, and what can be done to whole rows of the batch."""

import torch
from torch import Tensor

from dmabench.kernels.live_keys.checks import check_window


class Slots:
    """Buffers, what they hold, and how many tokens have been seen. Not for use by itself."""

    def __init__(self, window: int) -> None:
        check_window(window)
        self.window = window
        self.seen = 0
        """Tokens seen, padding included."""
        self.k_BGWD: Tensor
        self.v_BGWD: Tensor
        self.delta_BGW: Tensor
        self.position_BGW: Tensor
        """int32: when the key was new, counted from 0 with padding included."""
        self.count_BG: Tensor
        """int32: the first `count` slots of a head hold its live keys, in no particular order."""
        self.seen_BG: Tensor
        """int32: `seen`, on the device."""
        self._allocated = False

    def __len__(self) -> int:
        """Tokens seen: `seen`, not the number of keys held."""
        return self.seen

    def __bool__(self) -> bool:
        """A cache that has seen nothing is still a cache."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers; 0 before the first call. It never grows."""
        return sum(x.nbytes for x in self._buffers()) if self._allocated else 0

    @torch.no_grad()
    def reorder(self, beam_index: Tensor) -> None:
        """Row b becomes what row beam_index[b] was, in place: int [B], as beam search chooses them."""
        if self._allocated:
            if beam_index.shape != self.count_BG.shape[:1]:
                raise ValueError(f"beam_index must be [{self.count_BG.shape[0]}], got {tuple(beam_index.shape)}")
            for buffer in self._buffers():
                buffer.copy_(buffer.index_select(0, beam_index))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order: int [any]. The buffers are new ones."""
        if self._allocated:
            self._set(*(buffer.index_select(0, indices) for buffer in self._buffers()))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch `repeats` times in a row. The buffers are new ones."""
        if self._allocated:
            self._set(*(buffer.repeat_interleave(repeats, 0) for buffer in self._buffers()))

    def reset(self) -> None:
        """Forget everything and keep the buffers."""
        self.seen = 0
        if self._allocated:
            for buffer in self._buffers():
                buffer.zero_()

    def _buffers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.k_BGWD, self.v_BGWD, self.delta_BGW, self.position_BGW, self.count_BG, self.seen_BG

    def _set(self, k: Tensor, v: Tensor, delta: Tensor, position: Tensor, count: Tensor, seen: Tensor) -> None:
        self.k_BGWD, self.v_BGWD, self.delta_BGW, self.position_BGW = k, v, delta, position
        self.count_BG, self.seen_BG = count, seen
        self._allocated = True

    def _reset(self, k: Tensor, delta: Tensor) -> None:
        """Forget everything; allocate unless the buffers there fit."""
        (B, G, _, D), w = k.shape, self.window
        wanted = ((B, G, w, D), k.dtype, k.device, delta.dtype)
        there = self._allocated and (self.k_BGWD.shape, self.k_BGWD.dtype, self.k_BGWD.device, self.delta_BGW.dtype)
        if there != wanted:
            k_BGWD, v_BGWD = k.new_zeros(B, G, w, D), k.new_zeros(B, G, w, D)
            position = k.new_zeros(B, G, w, dtype=torch.int32)
            count, seen = (k.new_zeros(B, G, dtype=torch.int32) for _ in range(2))
            self._set(k_BGWD, v_BGWD, delta.new_zeros(B, G, w), position, count, seen)
        self.reset()
