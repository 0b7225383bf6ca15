"""What two compared runs do not share besides the code, and what to doubt about their comparison."""

import math
import statistics
from typing import Any

from dmabench.compare.verdicts import DRIFT, RESOLUTION, Comparison
from dmabench.store.environment import device_name

Manifest = dict[str, Any]

CLOCKS = 0.02
"""Clocks that are further apart than this are told; one step of an H100's is 15 of 1980 MHz."""


def differences(a: Manifest, b: Manifest) -> list[str]:
    """What was not the same besides the code and the choice of cells, each as "name: A -> B": device, driver, versions,
    platform, replay, seed."""
    of_a, of_b = _conditions(a), _conditions(b)
    return [
        f"{name}: {_show(of_a.get(name))} -> {_show(of_b.get(name))}"
        for name in dict.fromkeys([*of_a, *of_b])
        if of_a.get(name) != of_b.get(name)
    ]


def doubts(a: Manifest, b: Manifest, comparison: Comparison, time: str) -> list[str]:
    """Sentences, the gravest first; none where nothing weakens the comparison."""
    found = []
    different = differences(a, b)
    if different:
        found.append(f"more than the code differs, and the ratios are of all of it: {'; '.join(different)}")
    elif _cards(a) != _cards(b):
        found.append("A and B ran on two cards of one kind, whose times differ by a percent or so")
    for name, manifest in (("A", a), ("B", b)):
        if manifest.get("status") != "finished":
            found.append(f"{name} did not finish ({manifest.get('status')}): cells may be missing in it")
        if ((manifest.get("environment") or {}).get("git") or {}).get("dirty"):
            found.append(f"{name} was measured with changes that are in no commit")
    found += _states(a, b)
    if comparison.drift > 1.0001 * math.sqrt(2) * DRIFT:
        found.append(
            f"dense cells, the same code in both, differ by {math.expm1(comparison.drift):.0%} beyond what their "
            "samples explain: the machine was not steady, and all intervals are as much wider"
        )
    return found + _unsure(comparison, time)


def _conditions(manifest: Manifest) -> dict[str, Any]:
    environment = manifest.get("environment") or {}
    settings = manifest.get("settings") or {}
    device = str(settings.get("device") or "cuda")
    on_gpu = device.startswith("cuda") and bool(environment.get("gpus"))
    drivers = {gpu.get("driver") for gpu in environment.get("gpus") or []}
    return {
        "device": device_name(environment, device),
        "cores": None if on_gpu else (environment.get("cpu") or {}).get("cores"),
        "driver": ", ".join(sorted(map(str, drivers))) if on_gpu else None,
        **{name: known for name, known in (environment.get("versions") or {}).items() if name != "dmabench"},
        "python": environment.get("python"),
        "platform": environment.get("platform"),
        "--replay": bool(settings.get("replay")),
        "DMABENCH_HOPPER": settings.get("hopper", "as usual"),
        "--seed": settings.get("seed"),
    }


def _cards(manifest: Manifest) -> list[Any]:
    return [gpu.get("uuid") for gpu in (manifest.get("environment") or {}).get("gpus") or []]


def _states(a: Manifest, b: Manifest) -> list[str]:
    found = []
    after = {name: (one.get("gpu_state") or {}).get("after") or [] for name, one in (("A", a), ("B", b))}
    throttled = [name for name, states in after.items() if any(state.get("throttled") for state in states)]
    if throttled:
        found.append(f"a GPU was throttled when {' and when '.join(throttled)} ended")
    clocks = [[state["sm_mhz"] for state in states if state.get("sm_mhz")] for states in after.values()]
    if all(clocks):
        before, now = (statistics.fmean(known) for known in clocks)
        if abs(math.log(now / before)) > CLOCKS:
            found.append(f"clocks when they ended: {before:.0f} -> {now:.0f} MHz")
    return found


def _unsure(comparison: Comparison, time: str) -> list[str]:
    unsure = [cell for cell in comparison.cells if cell.verdict == "UNSURE"]
    bare = sum(cell.ratio is None for cell in unsure)
    found = []
    if bare:
        found.append(f"{bare} of the cells UNSURE have no samples stored, so no interval")
    if len(unsure) > bare:
        instead = ", or compare device time (--time gpu)" if time in ("wall", "total") else ""
        found.append(f"UNSURE: too noisy to rule out {RESOLUTION:.0%}; measure longer (--cap){instead}")
    return found


def _show(value: Any) -> str:
    return "none" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
