"""`dmabench report --readme`: the tables, sentences and charts of a README, written between markers from stored rows.

A block stands between two lines of its own, which a reader of the rendered page does not see:

    <!-- dmabench:times results/reference/h100/kernels/NAME pass=fwd columns=dma/triton,dma/cuda -->
    <!-- /dmabench:times -->

The first names the kind of block (`readme_blocks.KINDS`), the runs, relative to the README's folder, and options. What
stands between is written anew, and says from which run and column it comes. No measured number stands elsewhere in a
README: `loose_numbers` finds those that do.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from dmabench.errors import Refusal
from dmabench.report.readme_blocks import KINDS, Asked

OPENING = re.compile(r"<!--\s*dmabench:(\S+)(.*?)-->\s*$")
CLOSING = re.compile(r"<!--\s*/dmabench:(\S+)\s*-->\s*$")
UNITS = (
    *("ns", "us", "µs", "ms", "s", "seconds?", "min", "minutes?", "hours?", "x", "×", "times", "%", "percent"),
    *("[KMGT]i?B", "kB", "[GT]B/s", "[KMGT]iB/s", "[GTP]?FLOPs?", "[GTP]FLOP/s", "tokens/s", "tokens a second"),
    *("W", "MHz", "GHz"),
)
MEASURED = re.compile(rf"(?<![\w.,-])\d[\d.,]*(?:\s?-\s?\d[\d.,]*)?\s?(?:{'|'.join(UNITS)})(?![\w/])")
"""A number with a unit. `x` behind a number is a ratio; a name such as p10, w64 or B=1 is none."""
NO_PROSE = re.compile(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|<?https?://\S+")
"""What is not looked at: code, addresses, comments."""


@dataclass(frozen=True)
class Block:
    """A block as it stands: what it asks for, its lines between the markers, and the number of its first line there
    (from 0)."""

    asked: Asked
    body: tuple[str, ...]
    at: int


@dataclass(frozen=True)
class Written:
    """What `write_readme` did: blocks and files, those of them that changed, and numbers outside of the blocks."""

    blocks: list[str]
    changed: list[str]
    loose: list[str]


def write_readme(path: Path) -> Written:
    """Writes every block of a README, and the charts that blocks show, anew from the rows that they name.

    Raises:
        Refusal: it cannot be read or written, has no block, or a block is not whole, of no known kind, or asks for
            runs, rows or options that are not there. Then nothing was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot read {path}: {getattr(error, 'strerror', None) or error}. Name a README.") from error
    blocks = find_blocks(text, path.name)
    if not blocks:
        raise Refusal(
            f"{path} has no block to fill: put <!-- dmabench:KIND RUN --> and <!-- /dmabench:KIND --> on lines of "
            f"their own (kinds: {', '.join(KINDS)})."
        )
    filled, files = fill(text, path.parent, path.name)
    new = find_blocks(filled, path.name)
    changed = [after.asked.told for before, after in zip(blocks, new, strict=True) if before.body != after.body]
    try:
        for name, content in files.items():
            if not _draws_the_same(path.parent / name, content):
                (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
                (path.parent / name).write_text(content, encoding="utf-8")
                changed.append(name)
        if filled != text:
            beside = path.with_name(path.name + ".new")
            beside.write_text(filled, encoding="utf-8")
            os.replace(beside, path)
    except OSError as error:
        raise Refusal(f"cannot write {path}: {error.strerror or error}.") from error
    return Written([block.asked.told for block in blocks] + list(files), changed, loose_numbers(filled))


def fill(text: str, root: Path, name: str = "the README") -> tuple[str, dict[str, str]]:
    """The text with every block written anew, and the charts that it shows, {path relative to root: SVG}.

    Args:
        root: the folder that paths of runs and charts start from.
        name: of the text, for refusals.
    """
    lines = text.split("\n")
    files: dict[str, str] = {}
    for block in reversed(find_blocks(text, name)):
        body, drawn = KINDS[block.asked.kind](replace(block.asked, root=root))
        lines[block.at : block.at + len(block.body)] = ["", *body, ""]
        files = drawn | files
    return "\n".join(lines), files


def find_blocks(text: str, name: str = "the README") -> list[Block]:
    """The blocks of a text in their order; markers inside of fenced code are examples and none."""
    found: list[Block] = []
    opened: tuple[Asked, int] | None = None
    lines = text.split("\n")
    for number, line in _outside_fences(lines):
        if opening := OPENING.match(line):
            where = f"{name}, line {number + 1}"
            if opened:
                raise Refusal(f"{where}: a block opens inside of {opened[0].told}: close that one first.")
            if opening[1] not in KINDS:
                raise Refusal(f"{where}: there is no block {opening[1]!r}; choose from {', '.join(KINDS)}.")
            words = opening[2].split()
            options = dict(word.split("=", 1) for word in words if "=" in word)
            opened = Asked(opening[1], tuple(word for word in words if "=" not in word), options, where), number + 1
        elif closing := CLOSING.match(line):
            if not opened or closing[1] != opened[0].kind:
                raise Refusal(f"{name}, line {number + 1}: {closing[1]!r} is closed and was not opened.")
            asked, at = opened
            found.append(Block(asked, tuple(lines[at:number]), at))
            opened = None
    if opened:
        raise Refusal(f"{opened[0].where}: the block is not closed: <!-- /dmabench:{opened[0].kind} --> is missing.")
    return found


def loose_numbers(text: str) -> list[str]:
    """Numbers with a unit that stand outside of the blocks, each with its line: nobody can see which rows they are of.

    The rule that tells them from other numbers: what is measured has a unit (UNITS), and is prose. A setting that
    needs a unit (a threshold in percent, say) is written as code, where it is not looked at; nor are addresses.
    """
    inside = {at for block in find_blocks(text) for at in range(block.at, block.at + len(block.body))}
    found = []
    for number, line in _outside_fences(text.split("\n")):
        if number not in inside:
            prose = NO_PROSE.sub(" ", line)
            found += [f"line {number + 1}: {match[0].strip()}" for match in MEASURED.finditer(prose)]
    return found


def _outside_fences(lines: list[str]) -> list[tuple[int, str]]:
    """Numbers (from 0) and lines that are no fenced or indented code."""
    kept, fence = [], ""
    for number, line in enumerate(lines):
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip().startswith(fence):
            fence = ""
        elif not fence and not line.startswith(("    ", "\t")):
            kept.append((number, line))
    return kept


def _draws_the_same(path: Path, content: str) -> bool:
    """Two versions of matplotlib draw the same numbers with other bytes: what counts is what the drawing says of
    itself, `readme_blocks.description`."""
    try:
        return description(path.read_text(encoding="utf-8")) == description(content)
    except (OSError, ValueError):
        return False


def description(svg: str) -> str:
    """The points that a chart of a README was drawn from, as it says itself."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    if not found:
        raise ValueError("the chart does not say what it was drawn from")
    return found[1]
