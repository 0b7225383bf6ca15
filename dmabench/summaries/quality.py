"""Layer time against quality: what a layer with an attention and a window costs, how good a model with them is, and how
fast the smallest window is that costs no quality.

Times are of `dmabench kernels --level layer`, qualities of models that a task trained. Nothing is averaged over runs: a
point has its time from one run and its quality from one run, both of the same device, at the same length and window.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from dmabench.summaries.controls import CONTROL, UNDERTRAINED, control_key, judged, part, settings_key
from dmabench.summaries.speedups import SHAPE
from dmabench.summaries.task_layout import name_of, place
from dmabench.summaries.tasks import extrapolation, summaries, varying
from dmabench.tasks.task import Task

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
SUBJECT = "dma"
MODELS = {"dense": CONTROL}
"""Functions of kernels whose attention has another name in models."""
PASSES = ("fwd", "bwd", "fwd+bwd")
ACCURACY_MARGIN = 0.02
"""Accuracy below MHA's that counts as none lost where no claim about the task has a margin: the least that three
seeds and a thousand questions tell apart (patterns and needles have it in claims.yaml)."""
LOSS_MARGIN = 0.01
"""Nats a token above MHA's held-out loss that count as none lost: 1% of perplexity. The margins of the claims about
language are 0, which asks for a better loss and not for one as good."""
NUMBERS = ("window", "ms", "p10_ms", "p90_ms", "speedup", "quality", "low", "high", "margin", "bound")
ONE_FIGURE = ("time_run", "quality_run", "task", "pass", "batch", "heads", "kv_heads", "head_dim", "dtype", "delta")
ONE_PANEL = (*ONE_FIGURE, "setting", "seqlen")
"""What points share whose qualities can be compared: MHA is the same model in another attention, or one layer."""


class Headline(NamedTuple):
    """The smallest window whose quality is within the margin of MHA's."""

    window: int | None
    """None: no window that was measured is."""
    speedup: float | None
    text: str


def layer_times(rows: Iterable[Row]) -> list[Row]:
    """Of each attention and window at each length, shape and delta of a run its fastest PASSED layer, as a point's
    fields: attention, window, backend, ms (total_ms), p10_ms, p90_ms, speedup (over the fastest dense layer; None where
    none was timed), and what SHAPE names. Padded heads are left out: their time is an upper bound.

    Args:
        rows: of any number of kernels runs.
    """
    fastest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        timed = row.get("status") == "PASSED" and row.get("total_ms") and not row.get("padded_heads")
        if row.get("level") != "layer" or row.get("pass") not in PASSES or not timed:
            continue
        key = (*(row.get(field) for field in SHAPE), row.get("function"), row.get("window"), row.get("delta"))
        if key not in fastest or row["total_ms"] < fastest[key]["total_ms"]:
            fastest[key] = row
    dense = {key[: len(SHAPE)]: row["total_ms"] for key, row in fastest.items() if row["function"] == "dense"}
    found = []
    for key, row in fastest.items():
        base = dense.get(key[: len(SHAPE)])
        told = {field: row.get(field) for field in (*SHAPE, "window", "delta", "p10_ms", "p90_ms")}
        told |= {"attention": MODELS.get(row["function"], row["function"]), "ms": row["total_ms"]}
        told |= {"backend": f"{row['function']}/{row['backend']}", "total_is": row.get("total_is")}
        found.append({**told, "speedup": base / row["total_ms"] if base else None})
    return found


def qualities(task: Task, rows: Sequence[Row]) -> list[Row]:
    """Of each attention and window in each setting of one run what its models are worth, a mean over seeds.

    Fields: run, device, task, measure (in words), better ("higher" or "lower"), setting (what tells it from the run's
    others, in words), seqlen (that of the test), attention, name, window, quality, low and high (as in the task's
    table; the range over seeds for perplexity), seeds, status (PASSED or UNDERTRAINED), model (its size, in words),
    control (accuracy that MHA must have).
    """
    if any(row.get("variant") is not None for row in rows):
        return []  # ablations change DMA itself: they are no other attention
    rows = [row for row in rows if row.get("model") is None]  # checkpoints of any size are not alike but for attention
    if any(row.get("test_len") is not None for row in rows):
        lines, measure = _by_length(task, rows), "accuracy"
    elif any(row.get("bits_per_byte") is not None for row in rows):
        lines, measure = _perplexities(task, rows), "perplexity of held-out text"
    else:
        lines, measure = summaries(task, rows), "accuracy"
        lines = [{**row, "quality": row["accuracy"]} for row in lines if row.get("accuracy") is not None]
    own = [axis.name for axis in task.axes if axis.of_model]
    differing = varying(task, lines, ("attention", "lr", "seed", "seqlen", *own))
    found = []
    for row in sorted(lines, key=lambda row: place(task, row)):
        if row.get("status") not in ("PASSED", UNDERTRAINED) or not row.get("seqlen"):
            continue
        words = [f"{name.replace('_', ' ')} {row[name]}" for name in differing if row.get(name) is not None]
        told = {field: row.get(field) for field in ("run", "device", "seqlen", "attention", "window", "quality")}
        told |= {field: row.get(field) for field in ("low", "high", "seeds", "status", "sparsity_active")}
        told |= {
            "task": task.name,
            "measure": f"{task.title}: {measure}",
            "name": name_of(row),
            "control": task.control,
        }
        told |= {"better": "lower" if measure.startswith("perplexity") else "higher", "model": _size(row)}
        found.append({**told, "setting": ", ".join(words)})
    return found


def points(times: Sequence[Row], scored: Sequence[Row], margins: Mapping[str, float]) -> "pandas.DataFrame":
    """Every time with every quality of the same device, length, attention and window.

    Args:
        times: of layer_times. scored: of qualities, of any number of runs.
        margins: task -> accuracy below MHA's that counts as none lost, as claims have it.

    Returns:
        a row for each point: the columns of both (time_run, quality_run in place of run), `margin`, `bound` (the
        quality that is just within the margin of MHA's; NaN without a sound MHA), `within`. Panels without MHA, or
        without any window beside it, are left out. Forward passes come first, then runs in the order of `scored`.
        Empty, with columns, where nothing matches.
    """
    import pandas

    found = []
    for time in times:
        for one in scored:
            if any(time.get(field) != one.get(field) for field in ("device", "seqlen", "attention", "window")):
                continue
            joined = {**time, **one, "time_run": time["run"], "quality_run": one["run"]}
            found.append({name: value for name, value in joined.items() if name != "run"})
    # Attentions without delta stand beside those of every delta.
    deltas: dict[tuple[Any, ...], list[Any]] = {}
    for row in found:
        known = deltas.setdefault(_without_delta(row), [])
        if row["delta"] is not None and row["delta"] not in known:
            known.append(row["delta"])
    found = [
        {**row, "delta": delta}
        for row in found
        for delta in ([row["delta"]] if row["delta"] is not None else deltas[_without_delta(row)] or [None])
    ]
    runs = list(dict.fromkeys(row["run"] for row in scored))
    found.sort(key=lambda row: (PASSES.index(row["pass"]), runs.index(row["quality_run"]), row["seqlen"]))
    panels: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        panels.setdefault(tuple(row[name] for name in ONE_PANEL), []).append(row)
    told = [row for panel in panels.values() for row in _bounded(panel, margins)]
    columns = (*ONE_PANEL, "attention", "window", "ms", "quality", "margin", "bound", "within", "speedup", "status")
    frame = pandas.DataFrame(told, columns=None if told else list(columns))
    for name in set(NUMBERS) & set(frame.columns):
        frame[name] = frame[name].astype(float)  # None is NaN, in a column that has nothing else too
    return frame


def headline(panel: "pandas.DataFrame") -> Headline:
    """Of the points of one panel: the smallest window of DMA whose mean quality is within the margin of MHA's."""
    rows: list[Row] = [
        {str(key): None if value != value else value for key, value in row.items()} for row in panel.to_dict("records")
    ]
    dense = next(row for row in rows if row["attention"] == CONTROL)
    mine = sorted((row for row in rows if row["attention"] == SUBJECT), key=lambda row: row["window"] or math.inf)
    if dense["status"] != "PASSED":
        return Headline(None, None, "none: MHA itself has not learned it (UNDERTRAINED), so nothing can be as good")
    if dense["bound"] is None:
        why = f"MHA itself has {dense['quality']:.3g} here, below the {dense['control']:g} that it needs"
        return Headline(None, None, f"none: {why}, so to be as good says nothing")
    if not mine:
        return Headline(None, None, f"none: no window of {SUBJECT} was both timed and scored here")
    digits = 3 if dense["better"] == "higher" else 4
    against = f"MHA's {dense['quality']:.{digits}g} (margin {_margin(dense)})"
    best = next((row for row in mine if row["within"]), None)
    if best is None:
        near = (max if dense["better"] == "higher" else min)(mine, key=lambda row: row["quality"])
        told = f"the nearest, w {near['window']:g}, has {near['quality']:.{digits}g}"
        return Headline(None, None, f"none: no window is within the margin of {against}; {told}")
    ratio = best["speedup"]
    times = f"{best['backend']} {best['ms']:.3g} ms, {dense['backend']} {dense['ms']:.3g} ms"
    times += "; the window holds the whole sequence: nothing is sparse" * (best.get("sparsity_active") is False)
    text = f"{ratio:.2g}x at w {best['window']:g}, with {best['quality']:.{digits}g} beside {against}: {times}"
    return Headline(int(best["window"]), ratio, text)


def panels_of(frame: "pandas.DataFrame") -> "list[pandas.DataFrame]":
    """The points of each panel, in the order of the frame."""
    return [panel for _, panel in frame.groupby(list(ONE_PANEL), dropna=False, sort=False)] if len(frame) else []


def unmatched(times: Sequence[Row], scored: Sequence[Row]) -> tuple[int, list[str]]:
    """How many qualities have no time, and the commands that would measure those times, one for each device."""
    timed = {tuple(row.get(field) for field in ("device", "seqlen", "attention", "window")) for row in times}
    missing = [
        row for row in scored if tuple(row[name] for name in ("device", "seqlen", "attention", "window")) not in timed
    ]
    commands: dict[str, None] = {}
    for device in dict.fromkeys(row["device"] for row in missing):
        mine = [row for row in missing if row["device"] == device]
        lengths = sorted({row["seqlen"] for row in mine})
        windows = sorted({row["window"] for row in scored if row["device"] == device and row["window"]})
        words = f"--seqlen {','.join(map(str, lengths))}"
        words += f" --window {','.join(map(str, windows))}" if windows else ""
        commands[f"dmabench kernels --level layer {words}"] = None
    return len(missing), list(commands)


def _bounded(panel: list[Row], margins: Mapping[str, float]) -> list[Row]:
    """The points of a panel with the bound that MHA sets; none without MHA, or without any window beside it."""
    dense = next((row for row in panel if row["attention"] == CONTROL), None)
    if dense is None or all(row["window"] is None for row in panel):
        return []
    lower = dense["better"] == "lower"
    margin = LOSS_MARGIN if lower else margins.get(dense["task"], ACCURACY_MARGIN)
    bound = dense["quality"] * math.exp(margin) if lower else dense["quality"] - margin
    learned = dense["status"] == "PASSED" and (lower or dense["quality"] >= dense["control"])
    if not learned:  # to be as good as what fails is no quality
        return [{**row, "margin": margin, "bound": math.nan, "within": False} for row in panel]
    return [
        {**row, "margin": margin, "bound": bound, "within": _within(row["quality"], bound, lower)}
        | ({"within": False} if row["status"] != "PASSED" else {})
        for row in panel
    ]


def _within(quality: float, bound: float, lower: bool) -> bool:
    slack = 1e-9 * max(1.0, abs(bound))  # 0.99 - 0.01 is not 0.98 in binary
    return quality <= bound + slack if lower else quality >= bound - slack


def _margin(row: Row) -> str:
    return f"{row['margin']:g}" if row["better"] == "higher" else f"{row['margin']:g} nats"


def _by_length(task: Task, rows: Sequence[Row]) -> list[Row]:
    """Needles: a line for each tested length, the mean over depths."""
    found = []
    for row in extrapolation(task, rows):
        for tested, accuracy in row["lengths"].items():
            found.append({**row, "seqlen": tested, "quality": accuracy, "low": None, "high": None})
    return found


def _perplexities(task: Task, rows: Sequence[Row]) -> list[Row]:
    """Language: a line for each setting; seeds are averaged as losses."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in judged(task, rows):
        if row["chosen"] and row.get("test_loss") is not None and part(row, "seqlen"):
            groups.setdefault((settings_key(task, row, ("seed",)), control_key(task, row)), []).append(row)
    found = []
    for group in groups.values():
        losses = [row["test_loss"] for row in group]
        told = {**group[0], "quality": math.exp(fmean(losses)), "seeds": len({row.get("seed") for row in group})}
        spread = {"low": math.exp(min(losses)), "high": math.exp(max(losses))} if told["seeds"] > 1 else {}
        found.append({**told, "low": None, "high": None, **spread})
    return found


def _size(row: Row) -> str:
    words = [str(row["size"])] if row.get("size") else []
    words += [f"{row['layers']} layers"] if row.get("layers") else []
    words += [f"width {row['d_model']}"] if row.get("d_model") else []
    return ", ".join(words)


def _without_delta(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ONE_PANEL if name != "delta")
