"""Runs on disk: rows, manifests, the machine they came from, and the frame of them all."""
