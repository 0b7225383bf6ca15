"""The table of `dmabench mask`: a line for each head, what all share said once."""

from collections.abc import Callable, Sequence
from typing import Any

from dmabench.tables.layout import Layout

Row = dict[str, Any]
# Field, and the words before it in the caption. One that differs is a column.
SETTINGS = {"model": "", "text": "on ", "delta": "delta ", "seqlen": "T ", "window": "w ", "layer": "layer "}
HEADERS = {"seqlen": "T", "window": "w"}
NOTES = (
    "keys: attended by some query; at end: by the last one; p10, p50, p90: how many queries attend to such a key",
    "ties: of all keys, those that share their importance with another",
    "age: median distance from a query back to its keys; overlap: of its keys with those of other heads (Jaccard)",
    "tiles that hold a pair: keys in order of position, reordered by lifetime, gathered for each block of queries",
)


def layout(rows: Sequence[Row], width: int | None = None) -> Layout:
    """A line for each row, at most `width` columns wide where leaving out columns can do it."""
    rows = list(rows)
    # The label of a model's delta says what its columns say already.
    fields = [field for field in SETTINGS if field != "delta" or any(not row.get("model") for row in rows)]
    values = {field: {row[field] for row in rows if row.get(field) is not None} for field in fields}
    caption = [
        f"{words}{next(iter(values[field]))}" for field, words in SETTINGS.items() if len(values.get(field, ())) == 1
    ]
    columns: dict[str, Callable[[Row], str]] = {
        HEADERS.get(field, field): lambda row, field=field: _text(row.get(field))  # type: ignore[misc]
        for field in fields
        if len(values[field]) > 1
    }
    columns |= MEASURED
    if len({row["density"] for row in rows}) == 1:
        caption.append(f"density {_percent(rows[0]['density'])}")
        del columns["density"]
    if len({row["tiles_dense"] for row in rows}) == 1:
        dense = f"dense {rows[0]['tiles_dense']:,}"
        caption.append(f"tiles of {rows[0]['block_q']} queries x {rows[0]['block_k']} keys: {dense}")
        del columns["dense"]
    notes = [*NOTES]
    left_out = []
    for drop in (None, "p10", "overlap", "at end", "p90"):
        if drop in columns:
            del columns[drop]
            left_out.append(drop)
        cells = [[cell(row) for cell in columns.values()] for row in rows]
        widths = [max([len(header), *(len(line[at]) for line in cells)]) for at, header in enumerate(columns)]
        if width is None or sum(widths) + len(widths) - 1 <= width:
            break
    if left_out:
        notes.append(f"left out to fit {width} columns: {', '.join(left_out)} (all of it: --json)")
    return Layout(list(columns), cells, " · ".join(caption), notes, rows)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


MEASURED: dict[str, Callable[[Row], str]] = {
    "head": lambda row: str(row["head"]),
    "keys": _count("live_keys"),
    "at end": _count("alive"),
    "density": lambda row: _percent(row["density"]),
    "ties": lambda row: _percent(row["ties"]),
    "p10": _count("lifetime_p10"),
    "p50": _count("lifetime_p50"),
    "p90": _count("lifetime_p90"),
    "age": _count("age"),
    "overlap": lambda row: "" if row["overlap"] is None else f"{row['overlap']:.2f}",
    "dense": _count("tiles_dense"),
    "in order": _count("tiles_in_order"),
    "reordered": _count("tiles_reordered"),
    "gathered": _count("tiles_gathered"),
}
