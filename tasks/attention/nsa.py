"""Native sparse attention (arXiv 2502.11089): summaries of blocks, whole blocks that they point to, and a window."""

import torch
from torch import Tensor, nn

from dmabench.kernels.native_sparse import Settings, compress, native_sparse_attention
from dmabench.tasks.attention.base import GroupedAttention, Step, uncompiled_on_cuda
from dmabench.tasks.cache import Growing, State
from dmabench.tasks.config import ModelConfig

attend = uncompiled_on_cuda(native_sparse_attention)


class BlockState(Growing):
    """All keys and values, and the summaries of complete blocks. Rows lie in compact places: padding is overwritten."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.summaries = Growing()

    def summarise(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed k and v of all T tokens, of which only those of new blocks are computed."""
        done, stride = self.summaries.seen, self.settings.compress_stride
        new = tuple(compress(x[:, :, done * stride :], self.settings) for x in (k, v))
        kc, vc = self.summaries.append(*new)
        return kc, vc

    def write(self, k: Tensor, v: Tensor, place_B: Tensor) -> tuple[Tensor, Tensor]:
        """n tokens at the places [place, place + n) of each row; returns all keys and values."""
        n = k.shape[2]
        held = self.append(k, v)
        for x, new in zip(held, (k, v), strict=True):
            place_BGnD = (place_B[:, None] + torch.arange(n, device=k.device))[:, None, :, None].expand_as(new)
            x.scatter_(2, place_BGnD, new)
        return held[0], held[1]

    def crop(self, max_length: int) -> None:
        super().crop(max_length)
        self.summaries.crop(self.settings.compressed_len(self.seen))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.summaries.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.summaries.batch_select_indices(indices)

    def reset(self) -> None:
        super().reset()
        self.summaries.reset()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return super().nbytes + self.summaries.nbytes


class NativeSparseAttention(GroupedAttention):
    """Qwen3's projections for all three branches, and a gate for each branch and query head, `sigmoid(g_proj(x))`.

    The paper gives each branch keys and values of its own and learns the compression; either would cost parameters
    that the other kinds do not have (own keys and values: 2 hidden_size G head_dim for each further branch, 17% of the
    680M model in all). As in fla-core, the branches share keys and values, and compression is the mean. What remains
    is g_proj: 3 hidden_size heads a layer, at a width of 1536 and 12 heads 55,296, or 0.2% of the 680M model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.g_proj = nn.Linear(config.hidden_size, 3 * config.num_attention_heads, bias=False)

    def new_state(self, full: bool) -> State:
        return BlockState(self.config.nsa_settings)

    def gates(self, x_BTC: Tensor) -> Tensor:
        """[B, H, T, 3], for the compressed, the selected and the window branch."""
        return self.g_proj(x_BTC).sigmoid().unflatten(-1, (-1, 3)).transpose(1, 2)

    def first(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        if isinstance(step.state, BlockState):
            step.state.append(k, v)
            if step.padding is None:
                step.state.summarise(k, v)
        settings = self.config.nsa_settings
        return attend(q, k, v, self.gates(x), settings, backend=self.config.nsa_backend)

    def further(self, q: Tensor, k: Tensor, v: Tensor, step: Step, x: Tensor) -> Tensor:
        state, n = step.state, q.shape[2]
        assert isinstance(state, BlockState)
        if step.mask_BT is None:
            k, v = state.append(k, v)
            compressed = state.summarise(k, v)
            return attend(q, k, v, self.gates(x), state.settings, compressed=compressed)
        place_B = step.mask_BT.sum(-1) - n
        k, v = state.write(k, v, place_B)
        positions = place_B[:, None] + torch.arange(n, device=q.device)
        return attend(q, k, v, self.gates(x), state.settings, positions=positions)
