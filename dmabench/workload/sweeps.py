"""Sweeps on the command line: `8192`, `4k,8k` (k = 1024), `1k:128k:x2`, `1k:4k:512`."""

import re

from dmabench.errors import Refusal

LONGEST = 1000
LARGEST = 2**31 - 1


def parse_sweep(text: str, option: str, least: int = 1) -> list[int]:
    """The numbers of a sweep, in order, without repeats.

    Raises:
        Refusal: not a sweep, empty, below `least`, or more than LONGEST numbers; the sentence names `option`.
    """
    numbers: list[int] = []
    for part in text.split(","):
        pieces = part.strip().split(":")
        if len(pieces) == 1:
            numbers.append(_number(pieces[0], option))
        elif len(pieces) == 3:
            start, stop, step = pieces
            numbers += _range(start, stop, step, option, part)
        else:
            raise Refusal(_form(option, part))
        if len(numbers) > LONGEST:
            raise Refusal(f"{option} {text}: more than {LONGEST} values; take larger steps")
    too_small = [n for n in numbers if n < least]
    if too_small:
        raise Refusal(f"{option} {text}: {too_small[0]} is too small; the least is {least}")
    if max(numbers) > LARGEST:
        raise Refusal(f"{option} {text}: {max(numbers)} is too large; the most is {LARGEST}")
    return list(dict.fromkeys(numbers))


def _range(start_text: str, stop_text: str, step_text: str, option: str, part: str) -> list[int]:
    start, stop = _number(start_text, option), _number(stop_text, option)
    times = step_text.strip().lower().startswith("x")
    step = _number(step_text.strip()[1:] if times else step_text, option)
    if stop < start:
        raise Refusal(f"{option} {part}: ends at {stop} before it starts at {start}; swap the two")
    if step < (2 if times else 1) or (times and start < 1):
        raise Refusal(f"{option} {part}: never gets there; use a factor of at least x2 or a step of at least 1")
    numbers = [start]
    while (following := numbers[-1] * step if times else numbers[-1] + step) <= stop and len(numbers) <= LONGEST:
        numbers.append(following)
    return numbers


def _number(text: str, option: str) -> int:
    match = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if not match:
        raise Refusal(_form(option, text))
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[match[2]]


def _form(option: str, text: str) -> str:
    return f"{option} {text!r} is not a number or a sweep; write 8192, 4k,8k, 1k:128k:x2 or 1k:4k:512 (k = 1024)"
