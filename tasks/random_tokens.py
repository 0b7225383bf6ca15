"""Random numbers without a state: a pure function of a key, the number of an example, and a slot in the example.

    gaps = key("mqar", seed, "train", "gaps")
    uniform(gaps, rows, 5)  # [len(rows), 5]; example 7 gets the same five numbers alone, first, or in any batch

Every draw is SplitMix64 (Steele, Lea and Flood 2014) at a place of its own: an example's stream starts where its hash
says, and slots follow one another in the stream. Arrays are numpy's, since torch has no arithmetic on uint64.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

STEP = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's: odd, the golden ratio in 64 bits."""
CHUNK = 1 << 16
"""Numbers mixed at once, so that they stay in a core's cache: 100,000 x 64 draws take 0.1 s so (numpy 2.4)."""


def key(*parts: int | str) -> int:
    """The key of a stream, from what names it: key("needle", seed, split, "depths"). Other parts, another stream."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def bits(key: int | U64, counters: U64 | I64) -> U64:
    """64 random bits for each counter: uint64, of the shape that key and counters broadcast to."""
    return _mix(np.asarray(key, np.uint64) + np.asarray(counters).astype(np.uint64) * STEP)


def words(key: int, rows: I64, count: int, first: int = 0) -> U64:
    """The 64-bit draws of slots first, ..., first + count - 1 of each row: uint64 [len(rows), count].

    Args:
        rows: numbers of examples, int64 [n], in any order.
    """
    slots = np.arange(first, first + count)
    return bits(bits(key, np.asarray(rows))[:, None], slots)


def uniform(key: int, rows: I64, count: int, first: int = 0) -> NDArray[np.float64]:
    """Uniform on [0, 1), multiples of 2^-53: float64 [len(rows), count]."""
    return np.ldexp((words(key, rows, count, first) >> np.uint64(11)).astype(np.float64), -53)


def below(key: int, rows: I64, count: int, limit: int, first: int = 0) -> I64:
    """Whole numbers 0, ..., limit - 1 with replacement: int64 [len(rows), count].

    No number is favoured by more than limit / 2^32.

    Raises:
        ValueError: a limit that is not within 1 to 2^32.
    """
    if not 1 <= limit <= 1 << 32:
        raise ValueError(f"cannot draw below {limit}: the limit must be within 1 to 2^32")
    return _scale(words(key, rows, count, first), limit)


def distinct(key: int, rows: I64, count: int, limit: int) -> I64:
    """Draws without replacement from 0, ..., limit - 1, in random order: int64 [len(rows), count].

    Slots that hold what an earlier slot holds are drawn again, until none does. Values are only compared for equality,
    so renaming the values renames the outcome alike: all ordered tuples without a repeat are equally likely. Where
    more than half of the range is wanted, a random order of the whole range is cut off instead.

    Raises:
        ValueError: more draws than the range has numbers.
    """
    if count > limit:
        raise ValueError(f"cannot draw {count} distinct numbers from {limit}")
    rows = np.asarray(rows)
    if 2 * count > limit:
        return np.argsort(words(key, rows, limit), axis=1)[:, :count]
    drawn = below(key, rows, count, limit)
    open_rows = np.arange(len(rows))
    fresh = np.zeros((len(rows), count), bool)  # slots redrawn in this round, which give way to those that stand
    turn = 0
    while len(open_rows):
        repeats = _repeats(drawn[open_rows], fresh)
        still = repeats.any(1)
        open_rows, fresh = open_rows[still], repeats[still]
        turn += 1
        again = below(key, rows[open_rows], count, limit, first=turn * count)
        drawn[open_rows] = np.where(fresh, again, drawn[open_rows])
    return drawn


def gumbel_top_k(key: int, rows: I64, weights: NDArray[np.float64], count: int) -> I64:
    """Weighted draws without replacement, as if one by one with the weights left: int64 [len(rows), count].

    Each of the len(weights) numbers gets log weight + Gumbel noise; the largest win, in their order (Kool et al. 2019).

    Args:
        weights: float64 [limit], above 0, of any sum.

    Raises:
        ValueError: more draws than weights.
    """
    limit = len(weights)
    if count > limit:
        raise ValueError(f"cannot draw {count} distinct numbers from {limit}")
    # -log(uniform) / weight is an exponential time; the earliest times are the largest Gumbel scores, at one log less.
    times = -np.log1p(-uniform(key, rows, limit)) / weights
    if 4 * count > limit:
        return np.argsort(times, axis=1)[:, :count]
    first = np.argpartition(times, count, axis=1)[:, :count]
    return np.take_along_axis(first, np.argsort(np.take_along_axis(times, first, 1), axis=1), 1)


def zipf(key: int, rows: I64, count: int, limit: int, exponent: float = 1.0) -> I64:
    """Numbers 0, ..., limit - 1 with replacement, number i with weight (i + 1)^-exponent: int64 [len(rows), count]."""
    shares = np.cumsum(np.arange(1, limit + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(shares[:-1] / shares[-1], uniform(key, rows, count), side="right")


def permutation(key: int, count: int) -> I64:
    """A random order of 0, ..., count - 1: int64 [count]."""
    return np.argsort(bits(key, np.arange(count)))


def fingerprint(tokens: I64) -> U64:
    """A hash of each row's tokens and their order: uint64 [n], from int64 [n, length].

    Splits that take examples by their fingerprint (% 4 == 0: test, say) cannot share one.
    """
    places = np.arange(tokens.shape[1]).astype(np.uint64) * STEP
    return _mix(np.bitwise_xor.reduce(bits(_mix(places), tokens), axis=1))


def _scale(draws: U64, limit: int) -> I64:
    """The upper 32 bits of each draw, from [0, 2^32) to [0, limit)."""
    return (((draws >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def _repeats(drawn: I64, fresh: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which slots of [n, count] hold what a standing slot, or an earlier one of the fresh, holds."""
    count = drawn.shape[1]
    order = np.sort((drawn * 2 + fresh) * count + np.arange(count), axis=1)
    value = order // (2 * count)
    repeats = np.zeros(drawn.shape, bool)
    np.put_along_axis(repeats, order[:, 1:] % count, value[:, 1:] == value[:, :-1], axis=1)
    return repeats


def _mix(x: U64) -> U64:
    """SplitMix64's finaliser, which takes counters to random bits. Changes x (any shape, contiguous), returns it."""
    flat = x.reshape(-1)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            part ^= part >> np.uint64(shift)
            part *= np.uint64(factor)
        part ^= part >> np.uint64(31)
    return flat.reshape(x.shape)
