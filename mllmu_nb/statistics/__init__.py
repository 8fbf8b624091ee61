"""Intervals, paired tests, rankings and two-sample quantities: pure functions on arrays."""
