"""Intervals, paired tests, rankings and two-sample quantities: pure functions on arrays."""

from mllmu_nb.statistics.intervals import Interval, interval, paired_difference

__all__ = ["Interval", "interval", "paired_difference"]
