"""Correctness before time: each backend against the definition in float64."""
