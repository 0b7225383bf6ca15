"""Latency and speed-up over sequence length, drawn for a paper: Okabe-Ito colours, dense in black, labels at line ends.

Figures are made without pyplot, so importing this or drawing changes no global state and needs no display.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmabench.charts import distributions
from dmabench.charts.data import remember
from dmabench.charts.labels import Label, halo, label_ends
from dmabench.charts.style import STYLE, look_of, places_of
from dmabench.charts.words import times
from dmabench.store.rows import FAILURES
from dmabench.store.run_folder import read_manifest, read_rows
from dmabench.store.runs import provenance
from dmabench.tables.kernels import add_speedups, kernels_frame

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "latency": "Time per call",
    "speedup": "Speed-up over the fastest dense backend",
    "deltas": "Speed-up by distribution of importance",
}
FINE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 2.5, 3)
PANEL = ("device", "pass", "level", "batch", "heads", "kv_heads", "head_dim", "dtype")


def latency(frame: "pandas.DataFrame") -> "dict[str, Figure]":
    """total_ms over seqlen, log-log, a figure for every device, pass, shape and delta: {file name stem: figure}. Where
    there are many deltas (distributions.py), only the first of them has one.

    frame: rows of one run (kernels_frame of them). Grey guides show growth with T and T^2; a cross marks where a line
    ends because the next length ran out of memory. Empty when no row has a time.
    """
    return _figures(frame, "latency", _draw_latency, places_of(frame))


def speedup(frame: "pandas.DataFrame") -> "dict[str, Figure]":
    """Speed-up over the fastest correct dense row, a figure for every device, pass, shape and delta.

    frame: rows with `speedup` (add_speedups). The line at 1 is the fastest dense row; what lies under it is slower and
    is drawn all the same. Rows with padded heads are left out: an upper bound is no speed-up. Empty when there is no
    dense row to compare with.
    """
    # Rows without a time stay where there is something to compare with: their line has a gap.
    compared = frame[frame["baseline" if "baseline" in frame else "speedup"].notna()]
    return _figures(compared, "speedup", _draw_speedup, places_of(frame))


def save(figure: "Figure", path: Path) -> list[Path]:
    """Writes the figure beside `path` as .png (200 dots an inch) and .svg, and returns both paths."""
    import matplotlib

    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(written[0], dpi=200)
        figure.savefig(written[1], metadata={"Date": None})  # the same rows give the same file
    return written


def draw_run(run_path: Path) -> list[Path]:
    """Draws a run's charts into its folder and returns the files written, none (with a log line why) when nothing in it
    has a time. Raises Refusal when the folder is no run."""
    rows, _ = read_rows(run_path)
    reason = nothing_to_draw(rows)
    if reason:
        logging.getLogger(__name__).info("no charts for %s: %s", run_path.name, reason)
        return []
    written = []
    for stem, figure in draw(rows, provenance(read_manifest(run_path))).items():
        written += save(figure, run_path / f"{stem}.png")
    return written


def draw(rows: list[dict[str, Any]], about: dict[str, str]) -> "dict[str, Figure]":
    """All charts of one run's rows; `about` (runs.provenance) goes into the footers."""
    frame = kernels_frame({**row, **about} for row in add_speedups(rows))
    return latency(frame) | speedup(frame) | by_distribution(frame)


def by_distribution(frame: "pandas.DataFrame") -> "dict[str, Figure]":
    """Speed-ups over distributions of importance, a figure for every device, pass and shape that has many of them."""
    import matplotlib

    figures: dict[str, Figure] = {}
    places = places_of(frame)
    with matplotlib.rc_context(STYLE):
        for _, panel in frame.groupby(list(PANEL), dropna=False, sort=False):
            if not distributions.many(panel):
                continue
            figure = distributions.draw(panel, places)
            if figure is not None:
                _dress(figure, panel, None, TITLES["deltas"])
                remember(figure, panel)
                figures[_stem("deltas", panel, None, figures)] = figure
    return figures


def nothing_to_draw(rows: list[dict[str, Any]]) -> str | None:
    """Why these rows give no chart, or None when they do."""
    if not rows:
        return "it has no rows"
    if not any(row.get("status") == "PASSED" and row.get("total_ms") and row.get("seqlen") for row in rows):
        return "no row passed, so there are no times"
    return None


def _figures(
    frame: "pandas.DataFrame",
    kind: str,
    draw_panel: "Callable[[Axes, pandas.DataFrame, dict[str, int]], None]",
    places: dict[str, int],
) -> "dict[str, Figure]":
    import matplotlib
    from matplotlib.figure import Figure

    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE):
        for _, panel in frame.groupby(list(PANEL), dropna=False, sort=False):
            if distributions.many(panel) and panel["seqlen"].nunique() == 1:
                continue  # one length is one point, and the chart of all deltas has it
            for delta, chosen in distributions.apart(panel):
                if not (chosen["status"].eq("PASSED") & chosen["total_ms"].gt(0)).any():
                    continue
                figure = Figure(figsize=(6.4, 4.3), layout=None)
                axes = figure.add_axes((0.095, 0.17, 0.64, 0.71))
                draw_panel(axes, chosen, places)
                _dress(figure, chosen, delta, TITLES[kind])
                remember(figure, chosen)
                figures[_stem(kind, chosen, delta, figures)] = figure
    return figures


def _draw_latency(axes: "Axes", panel: "pandas.DataFrame", places: dict[str, int]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.set_ylabel("total time per call (ms)")
    labels = _lines(axes, panel, "total_ms", places)
    _guides(axes, panel)
    low, high = axes.get_ylim()
    ended = {label.name for label in labels if label.end}
    if ended:
        high *= (high / low) ** (0.05 + 0.07 * len(ended))  # room for the labels of lines that end high up
        axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    label_ends(axes, labels)


def _draw_speedup(axes: "Axes", panel: "pandas.DataFrame", places: dict[str, int]) -> None:
    panel = panel[~panel["padded_heads"].fillna(False).astype(bool)] if "padded_heads" in panel else panel
    axes.set_yscale("log", base=2)
    axes.set_ylabel("speed-up over the fastest dense backend")
    labels = _lines(axes, panel, "speedup", places)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low * 0.75, 0.8), max(high, 1.25))
    axes.axhline(1, color="black", linewidth=0.8, zorder=1)
    axes.axhspan(axes.get_ylim()[0], 1, color="#f2f2f2", zorder=0)
    axes.text(0.01, 0.015, "slower than dense", transform=axes.transAxes, fontsize=6.5, color="#777777",
              path_effects=halo(), zorder=6)  # fmt: skip
    bottom, top = axes.get_ylim()
    if top / bottom < 4:  # powers of two alone would be one or two ticks
        axes.set_yticks([tick for tick in FINE if bottom <= tick <= top])
    axes.yaxis.set_major_formatter(lambda value, _: times(value))
    label_ends(axes, labels)


def _lines(axes: "Axes", panel: "pandas.DataFrame", field: str, places: dict[str, int]) -> list[Label]:
    """One line a backend and window; returns the labels of the line ends. A line has a gap where a length in between
    has no time: nothing was measured there that it could pass through."""
    labels: list[Label] = []
    # pandas copies every column at every choice of rows, and a row has seventy.
    panel = panel[["id", "pass", "window", "seqlen", "status", field]].copy()
    for name in dict.fromkeys(panel["id"]):
        of_backend = panel[panel["id"] == name]
        windows = sorted(of_backend["window"].dropna().unique())
        if of_backend["window"].isna().any():  # dense, latent; native sparse with the paper's settings
            windows.append(None)
        for number, window in enumerate(windows):
            chosen = of_backend["window"].isna() if window is None else of_backend["window"] == window
            rows = of_backend[chosen]
            timed = rows[rows["status"].eq("PASSED") & rows[field].gt(0)].groupby("seqlen")[field].median()
            if timed.empty:
                continue
            look = look_of(name, number, places)
            inner = rows["seqlen"].between(timed.index[0], timed.index[-1])
            line = timed.reindex(sorted(rows.loc[inner, "seqlen"].unique()))
            note = "" if len(windows) == 1 else "paper" if window is None else f"w {_length(window)}"
            axes.plot(line.index, line.values, label=f"{name}, {note}" if note else name, **look)
            end = ""
            out = rows[rows["status"].eq("OUT_OF_MEMORY") & rows["seqlen"].gt(timed.index[-1])]["seqlen"]
            if field == "total_ms" and not out.empty:
                cross = {"color": look["color"], "markersize": 9, "markeredgewidth": 1.6, "zorder": 5}
                axes.plot(timed.index[-1:], timed.values[-1:], "x", **cross)
                end = f"out of memory at {_length(out.min())}"
            labels.append(Label(float(timed.index[-1]), float(timed.iloc[-1]), look["color"], name, note, end))
    lengths = sorted(panel.loc[panel["status"].eq("PASSED") & panel[field].gt(0), "seqlen"].unique())
    _length_axis(axes, lengths, seen=panel["pass"].eq("decode").all())
    return labels


def _length_axis(axes: "Axes", lengths: list[float], seen: bool) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [_length(length) for length in lengths])
    axes.xaxis.minorticks_off()
    axes.yaxis.minorticks_off()
    axes.set_xlabel("tokens seen" if seen else "sequence length T (tokens)")
    margin = 2 if len(lengths) == 1 else 1.12
    axes.set_xlim(lengths[0] / margin, lengths[-1] * margin)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _guides(axes: "Axes", panel: "pandas.DataFrame") -> None:
    """Two grey lines with the slopes of T and T^2 from one point, low on the left, where no data is."""
    timed = panel[panel["status"].eq("PASSED") & panel["total_ms"].gt(0)]
    first, last = timed["seqlen"].min(), timed["seqlen"].max()
    if first == last:
        return
    start = timed["total_ms"].min() / 2.2
    for power, label in ((1, "∝ T"), (2, "∝ T²")):
        end = start * (last / first) ** power
        axes.plot([first, last], [start, end], color="#bdbdbd", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        # Under the guide, where no line can be: both guides start below the fastest one.
        axes.annotate(label, (last, end), (3, -18 if power == 2 else -12), textcoords="offset points", ha="right",
                      va="bottom", fontsize=7, color="#8c8c8c", path_effects=halo(), zorder=6)  # fmt: skip


def _dress(figure: "Figure", panel: "pandas.DataFrame", delta: Any, title: str) -> None:
    first = panel.iloc[0]
    windows = sorted(panel["window"].dropna().unique())
    shape = f"B {first['batch']:.0f}, H {first['heads']:.0f}, G {first['kv_heads']:.0f}, D {first['head_dim']:.0f}"
    words = [shape, str(first["dtype"])]
    words += [f"window {', '.join(_length(window) for window in windows)}"] if windows else []
    words += [f"delta {delta}"] if delta is not None else []
    passes = {"fwd": "forward", "bwd": "backward", "fwd+bwd": "forward and backward", "decode": "decoding"}
    title += f", {passes.get(first['pass'], first['pass'])}" + (" a layer" if first["level"] == "layer" else "")
    figure.text(0.02, 0.965, title, fontsize=9.5, weight="bold", va="top")
    figure.text(0.02, 0.918, "  ·  ".join(words), fontsize=7, color="#444444", va="top")
    samples = panel.loc[panel["status"].eq("PASSED"), "samples"].dropna()
    count = "n unknown" if samples.empty else f"n = {samples.min():.0f}"
    if not samples.empty and samples.max() > samples.min():
        count += f" to {samples.max():.0f}"
    parts = [
        str(first["device"]),
        str(first.get("versions") or ""),
        str(first.get("commit") or ""),
        f"medians, {count}",
    ]
    failed = [status for status in FAILURES if panel["status"].eq(status).any()]
    parts += [f"gaps: {', '.join(failed)}"] if failed else []
    figure.text(0.02, 0.02, "  ·  ".join(part for part in parts if part), fontsize=6.5, color="#666666")


def _stem(kind: str, panel: "pandas.DataFrame", delta: Any, taken: "dict[str, Figure]") -> str:
    first = panel.iloc[0]
    level = "layer" if first["level"] == "layer" else None
    words = [
        kind,
        level,
        first["pass"],
        f"h{first['heads']:.0f}g{first['kv_heads']:.0f}d{first['head_dim']:.0f}",
        delta,
    ]
    stem = re.sub(r"[^a-z0-9-]+", "-", "-".join(str(word) for word in words if word is not None).lower()).strip("-")
    number = 2
    while stem in taken:
        stem = f"{re.sub(r'-n[0-9]+$', '', stem)}-n{number}"
        number += 1
    return stem


def _length(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"
