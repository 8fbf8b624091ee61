"""Distances between two samples, and how well an attack tells them apart: docs/scoring.md ("Intervals")."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import log10, nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon
from scipy.special import stdtrit
from scipy.stats import ks_2samp
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.statistics.intervals import ENDS, FEW_PEOPLE, LEVEL, RESAMPLES, SAME, resample_counts

BINS = 10
AT_END = 0.5  # an area with fewer misordered pairs, counted in people, is close to an end (0 or 1)
TINY = 1e-300  # a smaller p-value is written as this one


def ks(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The Kolmogorov-Smirnov statistic of two samples, and log10 of its p-value, which assumes independent values."""
    with warnings.catch_warnings():  # where the exact p-value fails, scipy takes the asymptotic one
        warnings.simplefilter("ignore", RuntimeWarning)
        result = ks_2samp(ours, theirs)
    return float(result.statistic), log10(max(float(result.pvalue), TINY))


def jensen_shannon(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Jensen-Shannon distance (base 2, 0 to 1) of the histograms of two samples [questions] over [0, 1]."""
    a, b = (np.histogram(values, np.linspace(0, 1, BINS + 1))[0] for values in (ours, theirs))
    return float(jensenshannon(a, b, base=2))


def jensen_shannon_by_chance(ours: np.ndarray, theirs: np.ndarray, people: np.ndarray) -> float:
    """The 95 % quantile of :func:`jensen_shannon` if the two models are swapped at random for each person; ``people``
    [questions] are the person of each question."""
    codes, edges = pd.factorize(people)[0], np.linspace(0, 1, BINS + 1)
    a, b = (np.histogram2d(codes, v, [np.arange(codes.max() + 2), edges])[0] for v in (ours, theirs))
    swapped = np.random.default_rng(0).integers(2, size=(RESAMPLES, len(a))).astype(float)
    chance = jensenshannon(a.sum(0) + swapped @ (b - a), b.sum(0) + swapped @ (a - b), base=2, axis=1)
    return float(np.quantile(chance, LEVEL))


def jackknife(function: Callable[..., float], samples: Sequence[np.ndarray], groups: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of ``function`` of samples [items], from its values without one of the ``groups`` [items] after
    another, by Student's t; NaN for one group, or without a spread."""
    codes = pd.factorize(groups)[0]
    if (count := int(codes.max()) + 1) < 2:
        return nan, nan
    value = function(*samples)
    without = np.array([function(*(one[codes != group] for one in samples)) for group in range(count)])
    if without.std() < SAME:
        return nan, nan
    reach = stdtrit(count - 1, ENDS[1]) * without.std() * np.sqrt(count - 1)
    return value - reach, value + reach


class Sample(NamedTuple):
    """Scores [items], and the person of each [items]."""

    values: np.ndarray
    people: np.ndarray


PerModel = Sequence[tuple[Sample, Sample]]  # positives and negatives; scores are only compared within a model


class Pairs:
    """Pairs of a positive and a negative item of the same model, counted by person, for areas under the ROC curve.

    ``higher`` and ``count`` [people with positives, people with negatives]: the number of pairs in which the positive
    item scores higher (a tie counts half), and of all pairs.
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
        """The area with its interval, people of both sides resampled; close to 0 or 1 at least as wide as Wilson's."""
        value, people = self.higher.sum() / self.count.sum(), min(self.count.shape)
        ends = self._resampled(self.higher, 0)
        if not ends or self._at_end():
            ends.append(proportion_confint(value * people, people, method="wilson"))
        return _widest(value, ends)

    def minus(self, other: Pairs) -> tuple[float, float, float]:
        """The difference to the area of another model of the same people, with its paired interval. Without a spread,
        or if both areas are close to 0 or 1, it is at least as wide as MOVER makes it from their own intervals."""
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
        """The interval of a share of all pairs, inside ``lowest`` to 1; none for one person or without a spread."""
        positive_people, negative_people = (resample_counts(n, RESAMPLES, seed) for seed, n in enumerate(sums.shape))
        higher, count = ((positive_people @ one * negative_people).sum(1) for one in (sums, self.count))
        shares = higher / count
        people, value = min(sums.shape), sums.sum() / self.count.sum()
        if people < 2 or not np.ptp(shares) >= SAME:  # NaN if a resample has no pair
            return []
        if people >= FEW_PEOPLE:
            return [np.quantile(shares, ENDS)]
        reach = stdtrit(people - 1, ENDS[1]) * shares.std(ddof=1) * np.sqrt(people / (people - 1))
        return [np.clip([value - reach, value + reach], lowest, 1)]


def _widest(value: float, intervals: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The value, and the ends of the smallest interval that contains it and all ``intervals``."""
    lows, highs = zip(*intervals, strict=True)
    return value, float(min(value, *lows)), float(max(value, *highs))


def hits(models: PerModel, level: float) -> Sample:
    """Whether each positive (1 or 0) is above the bar that at most a share ``level`` of negatives exceed; each model
    has its own. The mean is the true positive rate."""
    above = []
    for positives, negatives in models:
        ranked = np.sort(negatives.values)[::-1]
        allowed = (np.arange(len(ranked) + 1) / len(ranked) <= level).sum() - 1
        above.append(positives.values > (ranked[allowed] if allowed < len(ranked) else -np.inf))
    people = np.concatenate([positives.people for positives, _ in models])
    return Sample(np.concatenate(above).astype(float), people)
