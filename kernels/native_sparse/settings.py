"""The five sizes of native sparse attention, and how many keys a query reads with them."""

from dataclasses import dataclass

INITIAL_BLOCKS, LOCAL_BLOCKS = 1, 2
"""Always selected: the first block, the query's own and the one before it (arXiv 2502.11089, section 4.1)."""


@dataclass(frozen=True)
class Settings:
    """Sizes in tokens, with the paper's letters; the defaults are the paper's own.

    Raises:
        ValueError: sizes that do not divide as the paper's equation 9 needs, or too few selected blocks.
    """

    compress_block: int = 32
    """l: tokens that one compressed key stands for."""
    compress_stride: int = 16
    """d: a compressed key starts every d tokens."""
    select_block: int = 64
    """l': tokens selected together."""
    select_count: int = 16
    """n: blocks a query selects, the first and the two local ones among them."""
    window: int = 512
    """w: the sliding window, the query's own token among them."""

    def __post_init__(self) -> None:
        length, stride, block = self.compress_block, self.compress_stride, self.select_block
        if min(length, stride, block, self.window) < 1:
            raise ValueError(f"sizes must be at least 1: {self}")
        if length % stride or block % stride or length > block:
            raise ValueError(
                f"the compression stride ({stride}) must divide the compression block ({length}) and the selection "
                f"block ({block}), and a compression block must fit into a selection block"
            )
        if self.select_count < INITIAL_BLOCKS + LOCAL_BLOCKS:
            raise ValueError(
                f"select_count must be at least {INITIAL_BLOCKS + LOCAL_BLOCKS}, got {self.select_count}: the first "
                "block and two local ones are always selected"
            )

    @property
    def uniform(self) -> bool:
        """One block size for everything, l = d = l': the only kind that fla-core's kernels select by."""
        return self.compress_block == self.compress_stride == self.select_block

    def compressed_len(self, tokens: int) -> int:
        """Compressed keys of `tokens` tokens: those whose block is complete."""
        return max(0, (tokens - self.compress_block) // self.compress_stride + 1)

    def selectable_len(self, tokens: int) -> int:
        """Selection blocks of `tokens` tokens, the last perhaps incomplete."""
        return -(-tokens // self.select_block)

    def token_keys(self) -> int:
        """Keys of single tokens that a late query reads: n l' selected ones and w in the window, overlap counted
        twice, as each branch reads its own."""
        return self.select_count * self.select_block + self.window


PAPER = Settings()
"""The paper's: l = 32, d = 16, l' = 64, n = 16, w = 512."""

MAX_COUNT = 32
"""fla-core ranks blocks in tiles of one block's length, which must be at least twice the count: 32 at l' = 64."""


def settings_for(window: int | None) -> Settings:
    """Settings with which a query reads exactly `window` single keys, as one of dynamic mask attention does.

    Two thirds of them or less are selected and the rest is sliding window, as in the paper (1024 and 512 of 1536: there
    n, l' and w are the paper's). The count is a power of two, which fla-core needs, and so is the block: 64, less where
    the window is too small for four of them, more where it would take over 32. Compression uses the same blocks
    (l = d = l'), so the summaries, T / l' of them, come on top; `cost.nsa_pairs` counts everything.

    Args:
        window: keys, at least 16; None for the paper's settings.

    Raises:
        ValueError: a smaller window.
    """
    if window is None:
        return PAPER
    if window < 16:
        raise ValueError(
            f"window {window} is too small for native sparse attention: it selects 4 blocks of 2 tokens or more "
            "beside a sliding window, so the least is 16"
        )
    block, selected = PAPER.select_block, 2 * window // 3
    while 4 * block > selected:
        block //= 2
    count = _power_of_two_below(selected // block)
    while count > MAX_COUNT:
        block, count = 2 * block, count // 2
    return Settings(block, block, block, count, window - count * block)


def _power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)
