"""The curriculum of recall: training starts with few pairs in short sequences and grows to what is tested.

It is a setting of the cell and a function of the step alone, so every attention goes through the same one.
"""

from dataclasses import replace

from dmabench.tasks.recall_examples import Layout, Stage

FIRST = 4
"""Pairs that the curriculum "on" starts with; each further stage has four times as many."""
SHARE = 0.4
"""Share of the steps that all stages before the target take together: the first half of it, or all if it is alone."""
EARLY = "a curriculum is on, off, or numbers of pairs below the target with + between them, such as 8+32+128"


def stages(curriculum: str, target: Layout, steps: int) -> list[Stage]:
    """The stages of a training of so many steps; the last has the target's layout.

    The first takes half of `SHARE` of the steps, since recall is learned there; others before the last share the rest.
    Their sequences are shorter in proportion to their pairs, and their batches larger (`TrainingSet.batch`).

    Args:
        curriculum: "off" (the target alone), "on" (4, 16, 64, ... pairs) or pairs such as "8+32+128".

    Raises:
        ValueError: a curriculum that is none of these.
    """
    early = _early_pairs(curriculum, target.pairs)
    whole = round(SHARE * steps)
    if 2 * len(early) > whole:
        early = []  # so few steps that a stage would have none
    if not early:
        return [Stage(0, target)]
    first = whole // 2 if len(early) > 1 else whole
    firsts = [0] + [first + (whole - first) * number // max(1, len(early) - 1) for number in range(len(early))]
    layouts = [*(_shorter(target, pairs) for pairs in early), target]
    return [Stage(step, layout) for step, layout in zip(firsts, layouts, strict=True)]


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
