"""The sections of a report about masks: a table of heads and their lifetimes, for each run of `dmabench mask`."""

from collections.abc import Sequence
from typing import Any

from dmabench.charts.style import STYLE
from dmabench.report.parts import about_run, chart, table
from dmabench.store.runs import provenance
from dmabench.tables.layout import WORDS

Row = dict[str, Any]
COMMAND = "mask"
ABOUT = "How many keys matter, how long they live, and the tiles that a kernel touches, a line for each key/value head."
NEEDS = "Distributions, which need nothing, and a model on a text"
COMMANDS = ("dmabench mask --delta iid,rising,clustered", "dmabench mask --model DIR --text FILE")


def is_mask_run(manifest: dict[str, Any]) -> bool:
    """Was the run made by `dmabench mask`?"""
    return manifest.get("command") == COMMAND


def mask_section(name: str, manifest: dict[str, Any], rows: list[Row], damaged: int) -> dict[str, Any]:
    """What the template shows of one run: facts, table, notes, charts."""
    section = {"task": COMMAND, **about_run(name, manifest, damaged), "notes": [], "tables": [], "charts": []}
    if not rows:
        return section | {"no_charts": "it has no rows"}
    from dmabench.tables.masks import layout

    shown = layout(rows)
    told = table(shown.caption, shown.headers, shown.cells, [""] * len(rows), WORDS)
    return section | {
        "notes": shown.notes,
        "tables": [told],
        "charts": _charts(rows, provenance(manifest)),
        "no_charts": None,
    }


def mask_group(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All runs, with the commands that make one where there is none."""
    mine = [section for section in sections if section.get("task") == COMMAND]
    words = {"name": COMMAND, "title": "Masks of heads", "about": ABOUT, "needs": NEEDS}
    return words | {"runs": mine, "commands": COMMANDS}


def _charts(rows: list[Row], about: dict[str, str]) -> list[dict[str, Any]]:
    import matplotlib

    from dmabench.charts.masks import draw

    drawn = []
    with matplotlib.rc_context(STYLE):
        for stem, figure in draw(rows, about).items():
            words = "; ".join(text.get_text() for text in figure.texts[:2])
            legend = figure.axes[0].get_legend()
            names = ", ".join(text.get_text() for text in legend.get_texts()) if legend else ""
            drawn.append(chart(stem, figure, f"Chart: {words}. Lines: {names}."))
    return drawn
