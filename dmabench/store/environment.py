"""What machine, which versions, which commit: everything a reader needs to judge or repeat a timing.

Nothing here imports torch, and nothing that is returned holds a host name, a user name or an absolute path.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from dmabench.errors import Refusal

PACKAGES = ("dmabench", "torch", "triton", "numpy")
# Libraries that change a timing when they are there; left out of the record when they are not.
OPTIONAL_PACKAGES = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "flash-attn", "flash-attn-3")

# Bits of NVML's clock event reasons (nvml.h, nvmlClocksEventReasons). The second field: does it slow the card down?
CLOCK_REASONS = {
    0x1: ("gpu_idle", False),
    0x2: ("applications_clocks_setting", False),
    0x4: ("sw_power_cap", True),
    0x8: ("hw_slowdown", True),
    0x10: ("sync_boost", False),
    0x20: ("sw_thermal_slowdown", True),
    0x40: ("hw_thermal_slowdown", True),
    0x80: ("hw_power_brake_slowdown", True),
    0x100: ("display_clock_setting", False),
}


def describe(more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The machine and the software (the packages in `more` too), as it goes into a run's manifest.

    Keys: python, platform, versions {package: version or None}, git {sha, dirty}, gpus [{name, uuid, driver,
    memory_mib}], visible_gpus (CUDA_VISIBLE_DEVICES or None), cpu {model, cores}. Raises Refusal when DMABENCH_COMMIT
    is set to something that is not a commit.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(more),
        "git": git_state(),
        "gpus": gpus(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cpu": {"model": cpu_model(), "cores": cpu_cores()},
    }


def device_name(environment: dict[str, Any], device: str | None = None) -> str:
    """The name people know a device by, for the `device` field of rows: of torch's `device` ("cpu", "cuda", "cuda:1"),
    or, without one, of all GPUs (each once), or the CPU where there is none."""
    gpus = environment.get("gpus") or []
    cpu = str((environment.get("cpu") or {}).get("model") or "unknown device")
    if device is not None and not device.startswith("cuda"):
        return cpu
    if device is not None and gpus:
        # torch counts the visible GPUs, nvidia-smi all of them.
        visible = [word.strip() for word in (environment.get("visible_gpus") or "").split(",") if word.strip()]
        index = int(device.partition(":")[2] or 0)
        chosen = visible[index] if index < len(visible) else str(index)
        for at, gpu in enumerate(gpus):
            if chosen == str(at) or (not chosen.isdigit() and str(gpu.get("uuid")).startswith(chosen)):
                return str(gpu.get("name"))
    names = [str(gpu.get("name")) for gpu in gpus]
    counted = [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    return ", ".join(counted) or cpu


def versions(more: tuple[str, ...] = ()) -> dict[str, str | None]:
    """Versions from the packages' metadata (importing torch would take seconds)."""
    found: dict[str, str | None] = {}
    for package in PACKAGES + more + OPTIONAL_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in PACKAGES + more:
                found[package] = None
    found["torch"] = _torch_build() or found["torch"]
    return found


def _torch_build() -> str | None:
    """Torch's version with its CUDA build ("2.11.0+cu130"), which the metadata lacks, read without running torch."""
    spec = importlib.util.find_spec("torch")
    try:
        text = (Path(spec.origin).parent / "version.py").read_text() if spec and spec.origin else ""
    except OSError:
        return None
    match = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def git_state() -> dict[str, Any]:
    """{"sha": str or None, "dirty": bool or None} of the checkout that holds this package.

    DMABENCH_COMMIT (a sha, with "-dirty" behind it for changed files) wins, for machines that get the files without
    the history. A package inside some other project's checkout has no commit of its own. Raises Refusal when
    DMABENCH_COMMIT is not a sha.
    """
    told = os.environ.get("DMABENCH_COMMIT", "").strip()
    if told:
        if not re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", told):
            raise Refusal(f"DMABENCH_COMMIT is {told!r}, which is not a commit: give 7 to 40 hex digits, or unset it.")
        return {"sha": told.removesuffix("-dirty"), "dirty": told.endswith("-dirty")}
    root = Path(__file__).resolve().parents[2]
    top = _output(["git", "-C", str(root), "rev-parse", "--show-toplevel"])
    if top is None or Path(top.strip()).resolve() != root:
        return {"sha": None, "dirty": None}
    sha = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    changes = _output(["git", "-C", str(root), "status", "--porcelain"])
    return {"sha": sha.strip() if sha else None, "dirty": bool(changes.strip()) if changes is not None else None}


def gpus() -> list[dict[str, Any]]:
    """Name, uuid, driver and memory (MiB) of each NVIDIA GPU; an empty list where there is no nvidia-smi."""
    rows = _nvidia_smi("name,uuid,driver_version,memory.total")
    return [
        {"name": name, "uuid": uuid, "driver": driver, "memory_mib": _number(memory)}
        for name, uuid, driver, memory in (row for row in rows if len(row) == 4)
    ]


def gpu_state() -> list[dict[str, Any]]:
    """Clocks (MHz), temperature (C), power (W) and clock event reasons of each GPU at this moment.

    `throttled` is true when one of the reasons slows the card down. An empty list where there is no nvidia-smi.
    """
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw,"
    rows = _nvidia_smi(fields + "clocks_event_reasons.active") or _nvidia_smi(fields + "clocks_throttle_reasons.active")
    states = []
    for sm, memory, temperature, power, reasons in (row for row in rows if len(row) == 5):
        names, throttled = clock_reasons(reasons)
        states.append(
            {
                "sm_mhz": _number(sm),
                "memory_mhz": _number(memory),
                "temperature_c": _number(temperature),
                "power_w": _number(power),
                "reasons": names,
                "throttled": throttled,
            }
        )
    return states


def clock_reasons(mask: str) -> tuple[list[str] | None, bool | None]:
    """Names of the bits in NVML's hexadecimal mask, and whether one of them slows the card; None where not reported."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return None, None
    present = [CLOCK_REASONS[bit] for bit in CLOCK_REASONS if bits & bit]
    return [name for name, _ in present], any(slows for _, slows in present)


def cpu_model() -> str:
    """The CPU's model name from /proc/cpuinfo, else what the platform module knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Cores this process may use (a container's share, where the system tells), not those of the whole host."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _nvidia_smi(fields: str) -> list[list[str]]:
    output = _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    return [[cell.strip() for cell in line.split(",")] for line in (output or "").splitlines() if line.strip()]


def _output(command: list[str]) -> str | None:
    """Standard output of a command, or None when it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]" and its relatives
        return None


def available_memory() -> int | None:
    """Bytes of main memory that a program can still take, droppable caches included; None where it is not known."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
