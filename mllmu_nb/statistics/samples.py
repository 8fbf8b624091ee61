"""How far two samples are from each other, and how well one is told from the other: docs/scoring.md ("Intervals")."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon
from scipy.special import stdtrit
from scipy.stats import ks_2samp
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.statistics.intervals import ENDS, FEW_PEOPLE, LEVEL, RESAMPLES, SAME, resample_counts

BINS = 10
AT_END = 0.5  # people's worth of pairs on the wrong side, below which an area is close to its end
TINY = 1e-300  # a p below is written as this one


def ks(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Kolmogorov and Smirnov's statistic of two samples and log10 of its p, which takes values for independent."""
    result = ks_2samp(ours, theirs)
    return float(result.statistic), log10(max(float(result.pvalue), TINY))


def jensen_shannon(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The distance (base 2, 0 to 1) of two histograms over [0, 1]; both [questions]."""
    a, b = (np.histogram(values, np.linspace(0, 1, BINS + 1))[0] for values in (ours, theirs))
    return float(jensenshannon(a, b, base=2))


def jensen_shannon_by_chance(ours: np.ndarray, theirs: np.ndarray, people: np.ndarray) -> float:
    """The 95 % level of :func:`jensen_shannon` where chance decides for each of the ``people`` [questions] which model
    is which."""
    codes, edges = pd.factorize(people)[0], np.linspace(0, 1, BINS + 1)
    a, b = (np.histogram2d(codes, v, [np.arange(codes.max() + 2), edges])[0] for v in (ours, theirs))
    swapped = np.random.default_rng(0).integers(2, size=(RESAMPLES, len(a))).astype(float)
    chance = jensenshannon(a.sum(0) + swapped @ (b - a), b.sum(0) + swapped @ (a - b), base=2, axis=1)
    return float(np.quantile(chance, LEVEL))


class Sample(NamedTuple):
    """Scores [items] and the person behind each [items]."""

    values: np.ndarray
    people: np.ndarray


PerModel = Sequence[tuple[Sample, Sample]]  # positives and negatives; scores of two models are not compared


class Pairs:
    """Positives against negatives of the same model, person by person; areas under the ROC curve are made of them.

    ``higher`` and ``count`` [people with positives, people with negatives]: in how many pairs of items the positive one
    scores higher (half for a tie), and how many there are.
    """

    def __init__(self, models: PerModel):
        people = [np.unique(np.concatenate([sides[i].people for sides in models]).astype(str)) for i in (0, 1)]
        self.higher, self.count = np.zeros((2, *map(len, people)))
        for positives, negatives in models:
            positive_people, negative_people = (
                p[:, None] == side.people.astype(str) for p, side in zip(people, (positives, negatives), strict=True)
            )
            a, b = positives.values[:, None], negatives.values
            self.higher += positive_people @ ((a > b) + 0.5 * (a == b)) @ negative_people.T.astype(float)
            self.count += np.outer(positive_people.sum(1), negative_people.sum(1))

    def auc(self) -> tuple[float, float, float]:
        """The area with its interval, people of both sides resampled; close to its end at least as wide as Wilson's."""
        value, people = self.higher.sum() / self.count.sum(), min(self.count.shape)
        ends = self._resampled(self.higher, 0)
        if not ends or self._at_end():
            ends.append(proportion_confint(value * people, people, method="wilson"))
        return _widest(value, ends)

    def minus(self, other: Pairs) -> tuple[float, float, float]:
        """The difference to the area of another model of the same people, with its paired interval; without a spread,
        or where both areas are close to an end, at least as wide as their own make it (MOVER)."""
        difference = self.higher - other.higher
        value, ends = difference.sum() / self.count.sum(), self._resampled(difference, -1)
        if not ends or (self._at_end() and other._at_end()):
            (a, a_low, a_high), (b, b_low, b_high) = self.auc(), other.auc()
            ends.append((value - np.hypot(a - a_low, b_high - b), value + np.hypot(a_high - a, b - b_low)))
        return _widest(value, ends)

    def _at_end(self) -> bool:
        share = self.higher.sum() / self.count.sum()
        return bool(min(self.count.shape) * min(share, 1 - share) < AT_END)

    def _resampled(self, sums: np.ndarray, lowest: float) -> list:
        """The interval of a share of all pairs, inside ``lowest`` to 1: none for one person and without a spread."""
        positive_people, negative_people = (resample_counts(n, RESAMPLES, seed) for seed, n in enumerate(sums.shape))
        higher, count = ((positive_people @ one * negative_people).sum(1) for one in (sums, self.count))
        shares = higher / count
        people, value = min(sums.shape), sums.sum() / self.count.sum()
        if people < 2 or not np.ptp(shares) >= SAME:  # NaN where a resample has no pair
            return []
        if people >= FEW_PEOPLE:
            return [np.quantile(shares, ENDS)]
        reach = stdtrit(people - 1, ENDS[1]) * shares.std(ddof=1) * np.sqrt(people / (people - 1))
        return [np.clip([value - reach, value + reach], lowest, 1)]


def _widest(value: float, intervals: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The value, and ends that hold every one of some intervals and the value."""
    lows, highs = zip(*intervals, strict=True)
    return value, float(min(value, *lows)), float(max(value, *highs))


def tpr(models: PerModel, level: float) -> float:
    """Share of positives above the bar that at most ``level`` of the negatives pass, each model with its own."""
    hits = total = 0
    for positives, negatives in models:
        ranked = np.sort(negatives.values)[::-1]
        allowed = (np.arange(len(ranked) + 1) / len(ranked) <= level).sum() - 1
        bar = ranked[allowed] if allowed < len(ranked) else -np.inf
        hits, total = hits + (positives.values > bar).sum(), total + len(positives.values)
    return float(hits / total)
