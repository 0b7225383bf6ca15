"""Speed-ups by the distribution of importance, for runs of so many that a chart for each would say little."""

from typing import TYPE_CHECKING

from dmabench.charts.labels import halo
from dmabench.charts.style import look_of
from dmabench.charts.words import times
from dmabench.store.rows import FAILURES
from dmabench.workload.cells import delta_place

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

APART = 2
"""Distributions up to which each has charts of its own."""
ACROSS = 4
"""Panels of a figure at most: the longest sequences stay."""


def many(panel: "pandas.DataFrame") -> bool:
    """Whether rows are of so many distributions that these share one chart."""
    return panel["delta"].nunique() > APART


def apart(panel: "pandas.DataFrame") -> "list[tuple[str | None, pandas.DataFrame]]":
    """The distributions that have charts of their own, each with its rows: all, or of many the first alone. Dense and
    sliding-window rows have no delta: they stand in the chart of every delta."""
    deltas = sorted(panel["delta"].dropna().unique(), key=delta_place)[: 1 if many(panel) else None]
    return [(delta, panel[panel["delta"].isna() | (panel["delta"] == delta)]) for delta in deltas] or [(None, panel)]


def draw(panel: "pandas.DataFrame", places: dict[str, int]) -> "Figure | None":
    """A panel for each length and window: distributions down, speed-up over the fastest dense backend across, a mark
    for each backend. A backend that failed has its status in place of a mark. None where nothing has a speed-up.

    Args:
        panel: rows of one device, pass and shape, with `speedup` (add_speedups).
    """
    from matplotlib.figure import Figure

    mine = panel[panel["delta"].notna() & ~panel["id"].str.startswith("dense/")]
    timed = mine[mine["speedup"].gt(0)]
    if timed.empty:
        return None
    at = sorted(timed[["seqlen", "window"]].drop_duplicates().itertuples(index=False, name=None))[-ACROSS:]
    deltas = sorted(mine["delta"].unique(), key=delta_place)
    names = [name for name in dict.fromkeys(mine["id"]) if name in places]
    width, high = 1.15 + 2.45 * max(len(at), 2), 0.26 * len(deltas)
    height = high + 1.6
    figure = Figure(figsize=(width, height), layout=None)
    step = (width - 1.25) / len(at)
    low, top = min(1.0, timed["speedup"].min()) / 1.25, timed["speedup"].max() * 1.25
    for number, (length, window) in enumerate(at):
        axes = figure.add_axes(((1.0 + number * step) / width, 0.8 / height, (step - 0.22) / width, high / height))
        here = mine[(mine["seqlen"] == length) & (mine["window"] == window)]
        for name in names:
            _marks(axes, here[here["id"] == name], name, deltas, places)
        _failures(axes, here[here["status"].isin(FAILURES)], deltas, places)
        axes.set_title(f"T {length:.0f}, w {window:.0f}", fontsize=7.5)
        _dress(axes, deltas, (low, top), first=number == 0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", bbox_to_anchor=(0.99, 0.3 / height), ncols=len(names),
                  frameon=False, fontsize=7, handletextpad=0.2, columnspacing=1.2)  # fmt: skip
    return figure


def _marks(axes: "Axes", rows: "pandas.DataFrame", name: str, deltas: list[str], places: dict[str, int]) -> None:
    look = {**look_of(name, 0, places), "linestyle": ""}
    timed = rows[rows["speedup"].gt(0)].set_index("delta")["speedup"]
    shown = [delta for delta in deltas if delta in timed.index]
    axes.plot([timed[delta] for delta in shown], [deltas.index(delta) for delta in shown], label=name, **look)


def _failures(axes: "Axes", rows: "pandas.DataFrame", deltas: list[str], places: dict[str, int]) -> None:
    """What failed in a line is said there, one below the other."""
    for delta, failed in rows.groupby("delta"):
        for number, (name, status) in enumerate(zip(failed["id"], failed["status"], strict=True)):
            look = look_of(name, 0, places) if name in places else {"color": "#666666"}
            y = deltas.index(str(delta)) + 0.38 * (number - (len(failed) - 1) / 2)
            axes.text(0.5, y, f"{name}: {status}", transform=axes.get_yaxis_transform(), fontsize=5.5, ha="center",
                      va="center", color=look["color"], path_effects=halo(), zorder=6)  # fmt: skip


def _dress(axes: "Axes", deltas: list[str], limits: tuple[float, float], first: bool) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(*limits)
    axes.set_ylim(len(deltas) - 0.5, -0.5)
    axes.set_yticks(range(len(deltas)), deltas)
    axes.xaxis.set_major_formatter(lambda value, _: times(value))
    axes.xaxis.minorticks_off()
    axes.tick_params(labelsize=7, length=2, labelleft=first)
    axes.grid(True, axis="both", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)
