"""The curriculum of recall: training starts with few pairs in short sequences and grows to what is tested.

It is a setting of the cell and a function of the step alone, so every attention goes through the same one.
"""

from dataclasses import replace

from dmabench.tasks.recall_examples import Layout, Stage

FIRST = 4
"""Pairs that the curriculum "on" starts with; each further stage has four times as many."""
SHARE = 0.4
"""Share of the steps that all stages before the target take together."""
EARLY = "a curriculum is on, off, or numbers of pairs below the target with + between them, such as 8+32+128"


def stages(curriculum: str, target: Layout, steps: int) -> list[Stage]:
    """The stages of a training of so many steps; the last has the target's layout.

    Those before it share the first 40% of the steps equally. Their sequences are shorter in proportion to their pairs
    (and their batches larger: `TrainingSet.batch`).

    Args:
        curriculum: "off" (the target alone), "on" (4, 16, 64, ... pairs) or pairs such as "8+32+128".

    Raises:
        ValueError: a curriculum that is none of these.
    """
    early = _early_pairs(curriculum, target.pairs)
    if len(early) >= round(SHARE * steps):
        early = []  # so few steps that a stage would have none
    length = SHARE * steps / max(1, len(early))
    found = [Stage(round(number * length), _shorter(target, pairs)) for number, pairs in enumerate(early)]
    return [*found, Stage(round(len(early) * length), target)]


def _early_pairs(curriculum: str, target: int) -> list[int]:
    if curriculum == "off":
        return []
    if curriculum == "on":
        return [pairs for power in range(12) if (pairs := FIRST * 4**power) < target]
    words = curriculum.split("+")
    if not all(word.isdecimal() and 0 < int(word) < target for word in words):
        raise ValueError(f"curriculum {curriculum!r} for {target} pairs: {EARLY}")
    return [int(word) for word in words]


def _shorter(target: Layout, pairs: int) -> Layout:
    half = max(2 * pairs, -(-target.seqlen * pairs // (2 * target.pairs)))
    return replace(target, pairs=pairs, seqlen=2 * half)
