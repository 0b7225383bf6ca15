"""What every section of a report has: facts about its run, tables and charts."""

import base64
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmabench.charts.style import with_dark_colours
from dmabench.store.environment import device_name
from dmabench.store.rows import FAILURES
from dmabench.store.runs import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def about_run(name: str, manifest: dict[str, Any], damaged: int) -> dict[str, Any]:
    """The part of a section that does not depend on what was run."""
    environment = manifest.get("environment") or {}
    return {
        "name": name,
        "status": manifest.get("status"),
        "command": shlex.join(str(word) for word in manifest.get("argv") or []),
        "device": device_name(environment),
        "facts": facts(manifest, environment, provenance(manifest)),
        "damaged": damaged,
    }


def table(
    title: str, headers: Sequence[str], cells: Sequence[Sequence[str]], states: Sequence[str], words: Sequence[str]
) -> dict[str, Any]:
    """A table as the templates take it.

    Args:
        states: of each line: "" for one that counts, else a status; a failure is coloured, anything else grey.
        words: headers of columns that are set left.
    """
    kinds = ["bad" if state in FAILURES else "none" if state else "" for state in states]
    return {"title": title, "headers": headers, "cells": cells, "lines": kinds, "words": words}


def facts(manifest: dict[str, Any], environment: dict[str, Any], about: dict[str, str]) -> list[tuple[str, str]]:
    """Names and values: when, with which versions, on what machine in which state."""
    cpu = environment.get("cpu") or {}
    facts = [
        ("started", manifest.get("started")),
        ("finished", manifest.get("finished") or f"not finished (status {manifest.get('status')})"),
        ("commit", about["commit"]),
        ("python", environment.get("python")),
        ("platform", environment.get("platform")),
        ("CPU", f"{cpu.get('model')}, {cpu.get('cores')} cores"),
        ("seeds", ", ".join(str(seed) for seed in manifest.get("seeds") or []) or None),
    ]
    facts += [(name, version) for name, version in (environment.get("versions") or {}).items()]
    for gpu in environment.get("gpus") or []:
        facts.append(
            ("GPU", f"{gpu.get('name')}, {gpu.get('memory_mib')} MiB, driver {gpu.get('driver')}, {gpu.get('uuid')}")
        )
    for when in ("before", "after"):
        for state in (manifest.get("gpu_state") or {}).get(when) or []:
            reasons = ", ".join(state.get("reasons") or []) or "none"
            facts.append(
                (
                    f"GPU {when}",
                    f"{state.get('sm_mhz')} MHz, memory {state.get('memory_mhz')} MHz, {state.get('temperature_c')} C, "
                    f"{state.get('power_w')} W, clock reasons: {reasons}",
                )
            )
    return [(name, str(value)) for name, value in facts if value is not None]


def chart(stem: str, figure: "Figure", alt: str) -> dict[str, Any]:
    """A chart as sections hold it: its figure, the name of its files, and what it says to those who cannot see it."""
    return {"stem": stem, "figure": figure, "alt": alt}


def data_uri(svg: str) -> str:
    """A drawing as the address of an image, with lighter colours for dark pages."""
    encoded = base64.b64encode(with_dark_colours(svg).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"
