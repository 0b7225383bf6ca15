"""Where a kernel's time and memory go: parts of a call, speed-up against density, operations a second below the
measured roof, peak memory. One figure for each pass and shape, with the panels that the rows have data for."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dmabench.charts import distributions
from dmabench.charts.data import remember
from dmabench.charts.style import COLOURS, STYLE, look_of, places_of
from dmabench.charts.words import times
from dmabench.summaries.speedups import add_speedups
from dmabench.summaries.task_layout import length
from dmabench.tables.kernels import kernels_frame

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = ("device", "pass", "batch", "heads", "kv_heads", "head_dim", "dtype", "delta")
PASSES = {"fwd": "forward", "bwd": "backward"}
PARTS = {"importance_ms": "importance", "plan_ms": "plan", "kernel_ms": "kernel"}
FIRST, WIDE, HIGH, BETWEEN = 1.25, 2.5, 1.75, 0.75
"""Inches before the first panel, of a panel, and between two of them."""
MOST = 9
"""Bars that fit into a panel."""
Draw = Callable[["Axes", "pandas.DataFrame", "dict[str, int]"], None]


def draw(rows: list[dict[str, Any]], about: dict[str, str]) -> "dict[str, Figure]":
    """{file name stem: figure} for the kernels of one run, forward and backward; layers and decoding have no parts.

    Args:
        about: runs.provenance, for the footers.
    """
    import matplotlib

    timed = [row for row in add_speedups(rows) if row.get("status") == "PASSED" and row.get("total_ms")]
    timed = [row for row in timed if row.get("level") in (None, "kernel") and row.get("pass") in PASSES]
    figures: dict[str, Figure] = {}
    if not any(row.get("function") != "dense" for row in timed):
        return figures
    frame = kernels_frame({**row, **about} for row in timed)
    places = places_of(frame)
    with matplotlib.rc_context(STYLE):
        for _, panel in frame.groupby(list(PANEL[:-1]), dropna=False, sort=False):
            for delta, chosen in distributions.apart(panel):
                panels = _panels(chosen)
                if panels:
                    figure = _figure(chosen, panels, places, delta)
                    figures[_stem(chosen, delta, figures)] = figure
    return figures


def _panels(panel: "pandas.DataFrame") -> dict[str, Draw]:
    """Title -> what draws it, of those with something to draw."""
    found: dict[str, Draw] = {}
    longest = panel[panel["seqlen"] == panel["seqlen"].max()]
    if longest["plan_ms"].gt(0).any():
        found[f"parts of a call, T {length(int(longest['seqlen'].iloc[0]))} (ms)"] = _parts
    sparse = panel[panel["function"].ne("dense") & panel["density"].gt(0) & panel["speedup"].gt(0)]
    if sparse["density"].nunique() > 1:
        found["speed-up against density"] = _density
    if "roof_tflops" in panel and panel["roof_tflops"].gt(0).any() and panel["executed_tflops"].gt(0).any():
        found["executed TFLOP/s below the roof"] = _roof
    if panel["peak_mib"].gt(0).any() and panel["seqlen"].nunique() > 1:
        found["peak memory (MiB)"] = _memory
    return found


def _figure(panel: "pandas.DataFrame", panels: dict[str, Draw], places: dict[str, int], delta: str | None) -> "Figure":
    from matplotlib.figure import Figure

    down = -(-len(panels) // 2)
    width, height = FIRST + 2 * WIDE + 0.65 + 1.3, 1.4 + down * HIGH + (down - 1) * BETWEEN
    figure = Figure(figsize=(width, height), layout=None)
    for number, (title, draw_panel) in enumerate(panels.items()):
        left = FIRST + number % 2 * (WIDE + 0.65)
        bottom = height - 0.72 - HIGH - number // 2 * (HIGH + BETWEEN)
        axes = figure.add_axes((left / width, bottom / height, WIDE / width, HIGH / height))
        axes.set_title(title, fontsize=7.5)
        axes.grid(True, color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        draw_panel(axes, panel, places)
        axes.tick_params(axis="x", labelsize=6.5)
        axes.tick_params(axis="y", labelsize=6)
    by_name: dict[str, Any] = {}
    for axes in figure.axes:
        by_name |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        by_name.values(), by_name.keys(), loc="center left", bbox_to_anchor=((width - 1.28) / width, 0.5),
        frameon=False, fontsize=6.5,
    )  # fmt: skip
    first = panel.iloc[0]
    shape = f"B {first['batch']:g}, H {first['heads']:g}, G {first['kv_heads']:g}, D {first['head_dim']:g}"
    words = [shape, str(first["dtype"]), *([f"delta {delta}"] if delta is not None else [])]
    title = f"Where time and memory go, {PASSES[first['pass']]}"
    figure.text(0.02, 1 - 0.13 / height, title, fontsize=9.5, weight="bold", va="top")
    figure.text(0.02, 1 - 0.33 / height, "  ·  ".join(words), fontsize=7, color="#444444", va="top")
    parts = [str(first["device"]), str(first.get("versions") or ""), str(first.get("commit") or ""), "medians"]
    parts += [f"n = {panel['samples'].min():.0f} to {panel['samples'].max():.0f}"] * bool(
        panel["samples"].notna().any()
    )
    figure.text(0.02, 0.09 / height, "  ·  ".join(filter(None, parts)), fontsize=6.5, color="#666666")
    remember(figure, panel)
    return figure


def _parts(axes: "Axes", panel: "pandas.DataFrame", places: dict[str, int]) -> None:
    """At the longest length a bar for each backend and window that is not dense, the fastest first."""
    longest = panel[(panel["seqlen"] == panel["seqlen"].max()) & panel["function"].ne("dense")]
    shown = longest.sort_values("total_ms").head(MOST)
    names = [_named(row) for _, row in shown.iterrows()]
    parts = {words: shown[field].fillna(0.0) for field, words in PARTS.items()}
    # Parts are timed one by one, so they can add up to more than the whole: then nothing is left.
    parts["rest of the call"] = (shown["total_ms"] - sum(parts.values())).clip(lower=0.0)
    left = 0.0 * shown["total_ms"]
    for colour, (words, widths) in zip(("#757575", COLOURS[4], COLOURS[0], "#bdbdbd"), parts.items(), strict=True):
        axes.barh(names, widths.tolist(), left=left.tolist(), height=0.65, color=colour, label=words)
        left = left + widths
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _density(axes: "Axes", panel: "pandas.DataFrame", places: dict[str, int]) -> None:
    """A point for each length and window; what the pairs left out explain is a line, and so is the break-even."""
    sparse = panel[panel["function"].ne("dense") & panel["density"].gt(0) & panel["speedup"].gt(0)]
    for name, mine in sparse.groupby("id", sort=False):
        look = {**look_of(str(name), 0, places), "linestyle": "none"}
        axes.plot(mine["density"], mine["speedup"], label=name, **look)
    ends = [sparse["density"].min(), min(1.0, sparse["density"].max())]
    axes.plot(ends, [1 / end for end in ends], color="#bdbdbd", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.text(ends[0], 1 / ends[0], " 1/density", fontsize=6, color="#8c8c8c", va="top")
    axes.axhline(1, color="#000000", linewidth=0.8, zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.yaxis.set_major_formatter(lambda value, _: times(value))
    axes.set_xlabel("share of pairs that are kept", fontsize=7)


def _roof(axes: "Axes", panel: "pandas.DataFrame", places: dict[str, int]) -> None:
    """Operations of executed tiles a second over length, below a matrix product timed in the same run."""
    for row, line in _lines(panel, "executed_tflops"):
        axes.plot(line.index, line.values, label=row["id"], **look_of(row["id"], 0, places))
    roof = panel["roof_tflops"].max()
    axes.axhline(roof, color="#8c8c8c", linewidth=1.1, linestyle=(0, (3, 2)), zorder=2)
    words: dict[str, Any] = {"fontsize": 6, "color": "#757575", "ha": "right", "va": "bottom"}
    axes.text(0.98, roof, "measured roof", transform=axes.get_yaxis_transform(), **words)
    axes.set_ylim(0, 1.12 * roof)
    _over_length(axes, panel)


def _memory(axes: "Axes", panel: "pandas.DataFrame", places: dict[str, int]) -> None:
    """Peak memory of a call over length, its mask included."""
    for row, line in _lines(panel, "peak_mib"):
        axes.plot(line.index, line.values, label=row["id"], **look_of(row["id"], 0, places))
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _over_length(axes, panel)


def _lines(panel: "pandas.DataFrame", field: str) -> "list[tuple[Any, pandas.Series]]":
    """Of each backend, at its smallest window, the values over length."""
    found = []
    for _, mine in panel.groupby("id", sort=False):
        least = mine["window"].min()
        chosen = mine[mine["window"].isna() if least != least else mine["window"] == least]
        line = chosen[chosen[field].gt(0)].groupby("seqlen")[field].median()
        if not line.empty:
            found.append((chosen.iloc[0], line))
    return found


def _over_length(axes: "Axes", panel: "pandas.DataFrame") -> None:
    lengths = sorted(panel["seqlen"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [length(int(one)) for one in lengths])
    axes.minorticks_off()
    axes.set_xlabel("sequence length T (each backend's smallest window)", fontsize=6.5)


def _named(row: Any) -> str:
    window = row["window"]
    return f"{row['id']}" + (f", w {length(int(window))}" if window == window else "")


def _stem(panel: "pandas.DataFrame", delta: str | None, taken: "dict[str, Figure]") -> str:
    first = panel.iloc[0]
    shape = f"h{first['heads']:.0f}g{first['kv_heads']:.0f}d{first['head_dim']:.0f}"
    words = "-".join(filter(None, ["costs", first["pass"], shape, delta]))
    stem = re.sub(r"[^a-z0-9-]+", "-", words.lower()).strip("-")
    number, free = 2, stem
    while free in taken:
        free, number = f"{stem}-n{number}", number + 1
    return free
