"""Values of a task's axes, from the words of a command line or a preset. No torch here."""

import math
from difflib import get_close_matches
from typing import Any

from dmabench.errors import Refusal
from dmabench.tasks.task import Axis
from dmabench.workload.sweeps import LONGEST, parse_sweep

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def option(axis: Axis) -> str:
    """The axis as the command line names it."""
    return "--" + axis.name.replace("_", "-")


def values_of(axis: Axis, given: Any) -> list[Any]:
    """The values that `given` names, in order, without repeats; [None] for None, where the task itself decides.

    Args:
        given: "2k,4k", "1k:8k:x2", "mha,dma", "1e-3,3e-3", "yes", or a number, a bool, or a sequence of these.

    Raises:
        Refusal: a value that the axis has not.
    """
    if given is None:
        return [None]
    text = ",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    if axis.type is int:
        return list(parse_sweep(text, option(axis), 0 if axis.least is None else int(axis.least)))
    words = [word.strip() for word in text.split(",")]
    if axis.type is float:
        values: list[Any] = [_number(axis, word) for word in words]
    elif axis.type is bool:
        values = [_truth(axis, word) for word in words]
    else:
        values = [_word(axis, word) for word in words]
    if len(values) > LONGEST:
        raise Refusal(f"{option(axis)}: more than {LONGEST} values; take fewer")
    return list(dict.fromkeys(values))


def _number(axis: Axis, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refusal(f"{option(axis)} {word!r} is not a number; write 0.001 or 1e-3,3e-3")
    if axis.least is not None and number < axis.least:
        raise Refusal(f"{option(axis)} {word}: too small; the least is {axis.least:g}")
    return number


def _truth(axis: Axis, word: str) -> bool:
    if word.lower() not in TRUE + FALSE:
        raise Refusal(f"{option(axis)} {word!r} is neither yes nor no")
    return word.lower() in TRUE


def _word(axis: Axis, word: str) -> str:
    if axis.choices and word not in axis.choices:
        near = get_close_matches(word, axis.choices, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(f"{option(axis)} {word!r} is unknown; choose from {', '.join(axis.choices)}{hint}")
    if not word:
        raise Refusal(f"{option(axis)}: a value is empty; write words with commas between them")
    return word
