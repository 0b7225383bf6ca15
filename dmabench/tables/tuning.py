"""The candidates of `dmabench tune` in a table, and as rows."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dmabench.timing.tuning import DROPPED, WRONG, Candidate, winners, words

if TYPE_CHECKING:
    from rich.table import Table


def as_row(one: Candidate) -> dict[str, Any]:
    """Flat, for JSON lines."""
    known = asdict(one.taken) if one.taken is not None else {}
    about = {"kernel": one.kernel, **asdict(one.config), "default": one.is_default, "status": one.status}
    return {**about, "reason": one.why or None, "ms": one.ms, **known}


def drawn(found: Sequence[Candidate]) -> "Table":
    """A line a candidate: what it takes, its time beside the default's, what became of it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    best = winners(found)
    notes = [f"{one.kernel} {words(one.config)}: {one.why}" for one in found if one.why]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left")
    table.caption = Text("\n".join(notes)) if notes else None
    headers = ("kernel", "configuration", "regs", "stack", "KiB", "serial", "ms", "of default", "")
    lines = []
    for one in found:
        default = next((x.ms for x in found if x.kernel == one.kernel and x.is_default), None)
        taken = one.taken
        share = f"{one.ms / default:.3f}" if one.ms is not None and default else ""
        said = one.why.split(":")[0] or ("winner" if best.get(one.kernel) == one and not one.is_default else "")
        cells = (
            one.kernel,
            words(one.config),
            *(
                (f"{taken.registers}", f"{taken.stack}", f"{taken.shared / 1024:.0f}", "yes" * taken.serialised)
                if taken is not None
                else ("",) * 4
            ),
            "" if one.ms is None else f"{one.ms:.4g}",
            share,
            "default" + (f"; {said}" if said else "") if one.is_default else said,
        )
        lines.append((cells, "dim" if one.status == DROPPED else "red" if one.status == WRONG else ""))
    shown = [number for number in range(len(headers)) if any(cells[number] for cells, _ in lines)]
    for number in shown:
        # Where the terminal is narrow a configuration takes two lines, and numbers stay whole.
        right, whole = 2 <= number <= 7, number != 1
        table.add_column(headers[number], justify="right" if right else "left", no_wrap=whole, overflow="fold")
    for cells, style in lines:
        table.add_row(*(Text(cells[number]) for number in shown), style=style)
    return table
