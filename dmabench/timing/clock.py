"""Timing one call at a time, on a GPU or on a CPU. Runs in the worker."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_SLEEP_AT_MOST_S = 0.05


class CpuClock:
    """perf_counter around the call; there is no device time of its own."""

    def gpu_ms(self, call: Callable[[], Any]) -> float | None:
        return None

    def wall_ms(self, call: Callable[[], Any]) -> float:
        """Milliseconds from call to return."""
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def synchronize(self) -> None:
        pass


class CudaClock:
    """CUDA events around the call, L2 flushed before each, its launches hidden behind a short sleep kernel."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        properties = torch.cuda.get_device_properties(self.device)
        self.flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device=self.device)
        self.cycles_per_s = self._calibrate()

    def _calibrate(self) -> float:
        cycles = 10_000_000
        self._sleep(cycles)
        return cycles / min(self._events(lambda: self._sleep(cycles)) * 1e-3 for _ in range(3))

    def _sleep(self, cycles: int) -> None:
        torch.cuda._sleep(cycles)

    def _events(self, call: Callable[[], Any]) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    def gpu_ms(self, call: Callable[[], Any], launch_s: float = 1e-3) -> float:
        """Device milliseconds of the call.

        Args:
            launch_s: how long the host takes to launch it, so that the sleep can cover it.
        """
        self.flush.zero_()
        self._sleep(int(min(1.5 * launch_s + 1e-4, _SLEEP_AT_MOST_S) * self.cycles_per_s))
        return self._events(call)

    def wall_ms(self, call: Callable[[], Any]) -> float:
        """Milliseconds from the call on an idle device to its end there, launches included."""
        self.flush.zero_()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(self.device)
        return (time.perf_counter() - start) * 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def make_clock(device: str) -> CpuClock | CudaClock:
    return CudaClock(device) if torch.device(device).type == "cuda" else CpuClock()


def measured_roofs(device: str, dtype: torch.dtype) -> dict[str, float]:
    """What this device reaches now: a large matrix product (TFLOP/s) and a copy (GB/s, read plus written)."""
    clock = make_clock(device)
    on_gpu = torch.device(device).type == "cuda"
    n, copied = (8192, 1 << 30) if on_gpu else (1024, 1 << 26)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)

    def seconds(call: Callable[[], Any]) -> float:
        for _ in range(3):
            call()
        clock.synchronize()
        times = [clock.gpu_ms(call) or clock.wall_ms(call) for _ in range(10)]
        return statistics.median(times) * 1e-3

    return {
        "roof_tflops": 2 * n**3 / seconds(lambda: a @ b) * 1e-12,
        "roof_gbs": 2 * copied / seconds(lambda: target.copy_(source)) * 1e-9,
    }
