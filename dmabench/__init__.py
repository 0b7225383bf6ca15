"""dmabench: the benchmark and evaluation harness for dynamic mask attention."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_runs"]

if TYPE_CHECKING:
    from dmabench.store.run_frame import load_runs


def __getattr__(name: str) -> Any:
    # When it is asked for: whoever imports dmabench.kernels runs this file, and needs no results store.
    if name == "load_runs":
        from dmabench.store.run_frame import load_runs

        return load_runs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
