"""The chart of `dmabench mask`: how long keys live, a curve for each head."""

import logging
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.charts.data import remember
from dmabench.charts.kernels import save
from dmabench.charts.style import COLOURS, DASHES, STYLE
from dmabench.kernels.mask_facts import LEVELS
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.runs import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def draw_run(path: Path) -> list[Path]:
    """Draws the charts of a run into its folder, as PNG and SVG, and returns the files written; none, with a log line,
    where it has no rows. Raises Refusal when the folder is no run."""
    rows, _ = read_rows(path)
    if not rows:
        logging.getLogger(__name__).info("no charts for %s: it has no rows", path.name)
        return []
    written = []
    for stem, figure in draw(rows, provenance(read_manifest(path))).items():
        written += save(figure, path / f"{stem}.png")
    return written


def draw(rows: Sequence[Row], about: dict[str, str]) -> "dict[str, Figure]":
    """{file name stem: figure}, a figure for each length, window and model: of the keys that any query attends to, the
    share that more than so many attend to. `about` (runs.provenance) goes into the footer."""
    import matplotlib

    def place(row: Row) -> tuple[Any, ...]:
        return row["model"] or "", row["text"] or "", row["seqlen"], row["window"]

    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE):
        for (model, _, seqlen, window), group in groupby(sorted(rows, key=place), place):
            words = ["lifetimes", model.partition("@")[0], f"t{seqlen}", f"w{window}"]
            stem = re.sub(r"[^a-z0-9-]+", "-", "-".join(word for word in words if word).lower())
            number, free = 2, stem
            while free in figures:
                free, number = f"{stem}-n{number}", number + 1
            figures[free] = _figure(list(group), about)
    return figures


def _figure(rows: Sequence[Row], about: dict[str, str]) -> "Figure":
    import pandas
    from matplotlib.figure import Figure

    first = rows[0]
    names = list(dict.fromkeys(_name(row) for row in rows))
    height = max(3.9, 0.16 * len(names) + 1.2)  # a model of many layers has a long legend
    figure = Figure(figsize=(6.4, height), layout=None)
    remember(figure, pandas.DataFrame(rows))
    axes = figure.add_axes((0.1, 0.74 / height, 0.66, 1 - 1.33 / height))
    told = set()
    for row in rows:
        at = names.index(_name(row))
        axes.plot(
            row["lifetimes"],
            [1 - level for level in LEVELS],
            color=COLOURS[at % len(COLOURS)],
            linestyle=DASHES[at // len(COLOURS) % len(DASHES)],
            linewidth=1.1,
            label=None if _name(row) in told else _name(row),
        )
        told.add(_name(row))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    axes.set_xlim(1, first["seqlen"] * 1.05)
    axes.set_ylim(0, 1.02)
    if first["window"] < first["seqlen"]:
        axes.axvline(first["window"], color="#8c8c8c", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate("w", (first["window"], 1.02), (0, 2), textcoords="offset points", fontsize=7, ha="center")
    axes.set_xlabel("queries that attend to a key")
    axes.set_ylabel("share of live keys that more attend to")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=7)
    heads = max(row["head"] for row in rows) + 1
    words = [f"T {first['seqlen']}", f"w {first['window']}", f"{heads} head{'s' * (heads != 1)}, a line each"]
    words = [f"{first['model']} on {first['text']}", *words] if first["model"] else words
    figure.text(0.02, 1 - 0.14 / height, "Lifetimes of keys", fontsize=9.5, weight="bold", va="top")
    figure.text(0.02, 1 - 0.34 / height, "  ·  ".join(words), fontsize=7, color="#444444", va="top")
    parts = [about.get("versions") or "", about.get("commit") or "", *_seed(first)]
    figure.text(0.02, 0.08 / height, "  ·  ".join(part for part in parts if part), fontsize=6.5, color="#666666")
    return figure


def _seed(row: Row) -> list[str]:
    return [f"seed {row['seed']}"] if row["seed"] is not None else []


def _name(row: Row) -> str:
    return str(row["delta"]) if row["layer"] is None else f"layer {row['layer']}"
