"""Batches of sequences of different lengths: rows are rolled so that padding comes last, where causality hides it.

A causal model never looks at what comes after a token. With the real tokens of each row at the front, no attention
and no convolution needs a mask, and a padded row computes exactly what it would alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """Where the real tokens of a batch are. Slots are the caller's places; compact places have the padding last."""

    mask_BT: Tensor
    """bool, by slot: True for real tokens."""
    lead_B: Tensor
    """int64: padded slots before the first real token of each row."""

    @classmethod
    def of(cls, attention_mask_BT: Tensor) -> "Padding | None":
        """None where every token is real (one synchronisation).

        Raises:
            ValueError: padding between real tokens.
        """
        mask = attention_mask_BT.bool()
        T = mask.shape[1]
        lead = torch.where(mask.any(-1), mask.int().argmax(-1), T)
        last = T - mask.int().flip(-1).argmax(-1)
        count = mask.sum(-1)
        whole, holes = torch.stack([mask.all(), ((count != last - lead) & (count > 0)).any()]).tolist()
        if holes:
            raise ValueError(
                "attention_mask has padding between real tokens of a row: pad on the left or on the right alone"
            )
        return None if whole else cls(mask, lead)

    def compact(self, x: Tensor) -> Tensor:
        """[B, T, ...] by slot -> by compact place."""
        return self._roll(x, self.lead_B)

    def slots(self, x: Tensor, dim: int = 1) -> Tensor:
        """By compact place along `dim` -> by slot. Padded slots hold what was computed for them: no meaning."""
        return self._roll(x.transpose(1, dim), -self.lead_B).transpose(1, dim)

    def _roll(self, x: Tensor, by_B: Tensor) -> Tensor:
        T = x.shape[1]
        index_BT = (torch.arange(T, device=x.device) + by_B[:, None]) % T
        return x.gather(1, index_BT.view(*index_BT.shape, *[1] * (x.dim() - 2)).expand_as(x))
