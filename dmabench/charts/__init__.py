"""Figures from rows, in one style."""
