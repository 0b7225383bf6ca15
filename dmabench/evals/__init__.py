"""Checkpoints scored on benchmarks and on held-out text."""
