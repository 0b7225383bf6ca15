"""Intervals, paired differences and fitted exponents."""
