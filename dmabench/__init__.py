"""dmabench: the benchmark and evaluation harness for dynamic mask attention."""

__version__ = "0.1.0"
