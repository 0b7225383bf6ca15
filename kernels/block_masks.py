"""FlexAttention's tile lists from ranges of query blocks.

A tile of keys is active for one range of query blocks and fully live for a range within it. FlexAttention wants, for
each query block, the list of its partial and of its full tiles, and for its backward the same by tile. How long the
longest list is, only the device knows, and asking it would make the host wait. So every list has room for all it could
hold: these are the only tensors here that grow as (T / 128)^2, 4 bytes an entry, repeated for each query head (64 MiB
for a list of 16 heads at T = 131072; the forward reads two such lists, the backward two more).
"""

from dataclasses import dataclass, fields, replace
from importlib import import_module

from torch import Tensor

from dmabench.kernels.plan import Tiles


@dataclass(frozen=True)
class TileLists:
    """The index tensors of a BlockMask (see torch.nn.attention.flex_attention.BlockMask), int32.

    Lists ascend; entries behind a list's count are 0. Partial and full lists have one width, since torch 2.11's
    templates step through both with the strides of the partial ones.
    """

    kv_count: Tensor
    kv_index: Tensor
    full_kv_count: Tensor
    full_kv_index: Tensor
    q_count: Tensor | None = None
    q_index: Tensor | None = None
    full_q_count: Tensor | None = None
    full_q_index: Tensor | None = None

    def tensors(self) -> dict[str, Tensor | None]:
        """Under the names that BlockMask gives them."""
        return {
            "kv_num_blocks": self.kv_count,
            "kv_indices": self.kv_index,
            "full_kv_num_blocks": self.full_kv_count,
            "full_kv_indices": self.full_kv_index,
            "q_num_blocks": self.q_count,
            "q_indices": self.q_index,
            "full_q_num_blocks": self.full_q_count,
            "full_q_indices": self.full_q_index,
        }

    def to_heads(self, groups: int) -> "TileLists":
        """Repeat each key/value head's lists for its query heads."""
        if groups == 1 or self.kv_count.shape[1] == 1:
            return self
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        repeated = {name: x.repeat_interleave(groups, 1) for name, x in mine.items() if x is not None}
        return replace(self, **repeated)


def tile_lists(tiles: Tiles, query_blocks: int, by_tile: bool) -> TileLists:
    """Lists for the ranges of query blocks in `tiles` [B, G, N], made on their device without waiting for it.

    Args:
        query_blocks: Q, how many query blocks there are.
        by_tile: also make the lists by tile, which only the backward reads.

    Returns:
        By query block: counts [B, G, Q], indices of tiles [B, G, Q, N]. By tile: counts [B, G, N], indices of query
        blocks [B, G, N, Q].
    """
    # Imported here, since Triton is not everywhere where a CPU is.
    made_by = import_module(f"dmabench.kernels.block_masks_{'triton' if tiles.first_BGN.is_cuda else 'torch'}")
    lists = made_by.by_query_block(tiles, query_blocks)
    return TileLists(*lists, *(made_by.by_tile(tiles, query_blocks) if by_tile else ()))
