"""The sentence about kernels: the speed-up at each length, by device, and where dense attention is faster."""

from collections.abc import Sequence
from typing import Any

from dmabench.report.reading import Stored
from dmabench.summaries.speedups import add_speedups, same_as_baseline
from dmabench.summaries.task_layout import length
from dmabench.tables.layout import backend_id, significant

Row = dict[str, Any]
PASSES = {"fwd": "forward", "bwd": "backward"}
HEADLINE = (8192, 32768, 131072)
"""Lengths of --preset h100."""
MOST = 2
"""Devices that the sentence names."""


def kernels(stored: Sequence[Stored]) -> str | None:
    """Of each device, for forward and backward: how many times as fast as the fastest correct dense backend DMA's
    fastest is, at one window and every length; and in how many cells of all runs it is slower. None without a cell.

    A pass is told from one run: that with the most of the headline lengths, then of any, the latest of equals. The
    window and the shape are those that were measured at the most lengths, the smallest window of equals; delta is iid
    where that was measured.
    """
    by_device: dict[str, list[tuple[Stored, list[Row]]]] = {}
    for one in stored:
        cells = [row for row in add_speedups(one.rows) if _counts(row)]
        for device in dict.fromkeys(str(row.get("device")) for row in cells):
            mine = [row for row in cells if str(row.get("device")) == device]
            by_device.setdefault(device, []).append((one, mine))
    if not by_device:
        return None
    order = sorted(by_device, key=lambda device: -sum(len(cells) for _, cells in by_device[device]))
    told = [_of_device(device, by_device[device]) for device in order[:MOST]]
    rest = len(order) - MOST
    return "; ".join(told) + (f"; {rest} more device{'s' * (rest > 1)} below" if rest > 0 else "") + "."


def _counts(row: Row) -> bool:
    """DMA's whole cost beside dense attention; the paper's protocol and the definition are no rivals of it."""
    kernel = row.get("function") == "dma" and row.get("level") in (None, "kernel") and row.get("pass") in PASSES
    compared = row.get("speedup") is not None and row.get("seqlen")
    return bool(kernel and compared and row.get("backend") not in ("reference", "sdpa-masked"))


def _of_device(device: str, runs: list[tuple[Stored, list[Row]]]) -> str:
    told: list[str] = []
    for name, words in PASSES.items():
        lines = [(one, line) for one, cells in runs if (line := _line([row for row in cells if row["pass"] == name]))]
        if lines:
            told.append(_pass(words, *max(lines, key=_rank), first=not told))
    every = [row for _, cells in runs for row in cells]
    lost = [row for row in every if row["speedup"] < 1 and not same_as_baseline(row)]
    if not lost:
        return f"on {device}, {', '.join(told)}; slower in none of {len(every)} timed cells"
    worst = min(lost, key=lambda row: row["speedup"])
    window = f", w {length(worst['window'])}" if worst.get("window") else ""
    where = f"{backend_id(worst)}, {PASSES[worst['pass']]}, T {length(worst['seqlen'])}{window}"
    runs_of = f" of {len(runs)} runs" if len(runs) > 1 else ""
    return (
        f"on {device}, {', '.join(told)}; slower in {len(lost)} of {len(every)} timed cells{runs_of}, all at T up to "
        f"{length(max(row['seqlen'] for row in lost))} and most of all {where} ({significant(worst['speedup'])}x)"
    )


def _rank(pair: tuple[Stored, list[Row]]) -> tuple[Any, ...]:
    stored, line = pair
    return len({row["seqlen"] for row in line} & set(HEADLINE)), len(line), stored.started, stored.name


def _line(cells: list[Row]) -> list[Row]:
    """The fastest backend at each length, for one shape, delta and window."""
    lines: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in cells:
        shape = tuple(row.get(field) for field in ("batch", "heads", "kv_heads", "head_dim", "dtype"))
        line = lines.setdefault((row.get("delta") != "iid", row.get("window") or 0, shape, row.get("delta")), {})
        best = line.get(row["seqlen"])
        if best is None or row["total_ms"] < best["total_ms"]:
            line[row["seqlen"]] = row
    if not lines:
        return []
    chosen = min(lines, key=lambda key: (key[0], -len(lines[key]), key[1]))
    return [lines[chosen][seqlen] for seqlen in sorted(lines[chosen])]


def _pass(words: str, stored: Stored, line: list[Row], first: bool) -> str:
    row = line[0]
    ratios = [significant(one["speedup"]) + " (the same)" * same_as_baseline(one) for one in line]
    lengths = [length(one["seqlen"]) for one in line]
    how = ", CUDA graphs" if all(one.get("total_is") == "graph" for one in line) else ""
    about = [f"w {length(row['window'])}"] if row.get("window") else []
    about += [f"delta {row['delta']}"] if row.get("delta") not in (None, "iid") else []
    about += [f"commit {stored.commit}{how}"]
    start = f"DMA's {words} is" if first else f"its {words}"
    as_fast = "times as fast as the fastest dense backend" if first else "times"
    return f"{start} {_listed(ratios)} {as_fast} at T {_listed(lengths)} ({', '.join(about)})"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
