"""95 % intervals: of a model over people, and of a method over replicates crossed with people. docs/scoring.md
("Intervals") says which one is used when, why, and how well they cover."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import hypot, isinf, nan, sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit, stdtrit
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.errors import KitError

FEW_PEOPLE = 30  # with fewer people, Student's t; else the bootstrap
RESAMPLES = 2000
RARE = 3.5  # with fewer right (or wrong) effective items, a proportion is close to an end
SAME = 1e-9  # people's means that are closer are equal: rounding alone gives equal scores a spread of 1e-17
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
ENDS = (0.025, 0.975)  # the quantiles of an interval, written out: in floating point, 1 - .95 is not .05
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A mean over items with its interval, NaN if there are no items. With one replicate, it is over people alone."""

    value: float
    low: float
    high: float
    n_items: int
    n_profiles: int
    n_replicates: int = 1


class Crossed(NamedTuple):
    """A mean over items of replicates crossed with people, its variance, and the degrees of freedom of the variance."""

    mean: float
    variance: float
    df: float


def interval(values, profiles, bounds: Bounds = (0.0, 1.0), replicates=None) -> Interval:
    """Return the mean of ``values`` [items] with its interval; ``profiles`` [items] are the person of each item.

    If ``replicates`` [items] name several, the interval is over replicates crossed with people (:func:`crossed`). NaN
    and infinite values count as not measured. With infinite ``bounds`` and no spread between people, the ends are NaN.
    Raises KitError for a value outside the bounds.
    """
    values, profiles = np.asarray(values, float), np.asarray(profiles)
    people, (low, high) = ByPerson.of(values, profiles), bounds
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    smallest, largest = people.values.min(), people.values.max()
    if smallest < low or largest > high:
        raise KitError(f"a score of {smallest:g} to {largest:g} lies outside its range {low:g} to {high:g}")
    at_an_end = people.close_to_an_end(bounds)
    if not at_an_end:
        ends = people.around()
    elif isinf(high - low):
        ends = nan, nan
    else:
        items = effective_items((people.sums - low * people.counts) / (high - low), people.counts)
        share = (people.mean - low) / (high - low)
        low_end, high_end = proportion_confint(share * items, items, 1 - LEVEL, "wilson")
        ends = low + low_end * (high - low), low + high_end * (high - low)
    return _over_replicates(people.within(*ends, bounds), at_an_end, values, profiles, replicates, bounds)


def paired_difference(a, b, profiles, bounds: Bounds = (0.0, 1.0), replicates=None) -> Interval:
    """Return the mean of ``a - b`` over items that both models answered, all [items] in the same order. ``bounds`` are
    those of a score, the rest as in :func:`interval`. If people hardly differ, it is at least as wide as MOVER
    (Newcombe 1998)."""
    a, b, profiles = np.asarray(a, float), np.asarray(b, float), np.asarray(profiles)
    people, measured, reach = ByPerson.of(a - b, profiles), np.isfinite(a - b), bounds[1] - bounds[0]
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    # the spread cannot be used if the models differ on too few people, or if both are close to an end
    differing = (np.abs(people.sums) > SAME).sum()
    own = [ByPerson.of(scores[measured], profiles[measured]) for scores in (a, b)]
    alike = people.alike or differing < min(RARE, len(people.sums) / 2)
    alike = alike or all(one.close_to_an_end(bounds) for one in own)
    if isinf(reach):
        over_people = interval(a - b, profiles, bounds)
    else:
        low, high = people.around() if len(people.counts) > 1 else (people.mean, people.mean)
        if alike:
            first, second = (interval(scores[measured], profiles[measured], bounds) for scores in (a, b))
            (down, up), (down_b, up_b) = ((m.value - m.low, m.high - m.value) for m in (first, second))
            agreeing = max(hypot(down, up), hypot(down_b, up_b))  # so that a first disagreement narrows nothing
            low = min(low, float(people.mean) - max(hypot(down, up_b), agreeing))
            high = max(high, float(people.mean) + max(hypot(up, down_b), agreeing))
        over_people = people.within(low, high, (-reach, reach))
    return _over_replicates(over_people, alike, a - b, profiles, replicates, (-reach, reach))


def _over_replicates(over_people: Interval, at_least: bool, values, profiles, replicates, bounds: Bounds) -> Interval:
    """The interval over replicates crossed with people. If ``at_least``, or if all replicates agree, no narrower than
    ``over_people``; one replicate returns ``over_people``."""
    if replicates is None:
        return over_people
    measured = np.isfinite(values)
    replicates = np.asarray(replicates)[measured]
    if (count := len(np.unique(replicates))) < 2:
        return over_people
    estimate = crossed(values[measured], profiles[measured], replicates)
    if not bounds[0] < estimate.mean < bounds[1]:
        return replace(over_people, n_replicates=count)
    low, high = limits(estimate, bounds)
    if at_least or estimate.variance < SAME**2:
        low, high = min(low, over_people.low), max(high, over_people.high)
    return replace(over_people, low=low, high=high, n_replicates=count)


def crossed(values, profiles, replicates) -> Crossed:
    """Return the mean of finite ``values`` [items] and its variance over new replicates and new people. People
    (``profiles``) may recur in several replicates. docs/scoring.md ("Intervals") has the formula. (Two crossed random
    factors: Searle, Casella and McCulloch 1992, in the linearised form of Cameron, Gelbach and Miller 2011.)"""
    values, total = np.asarray(values, float), len(values)
    row, column = pd.factorize(np.asarray(replicates))[0], pd.factorize(np.asarray(profiles))[0]
    shape = row.max() + 1, column.max() + 1
    cell, size = np.ravel_multi_index((row, column), shape), shape[0] * shape[1]
    counts = np.bincount(cell, minlength=size).reshape(shape)
    sums = np.bincount(cell, values - values.mean(), size).reshape(shape)
    has_items = counts > 0
    several, pairs = shape[0] - 1, has_items.sum()
    between = shape[0] / several * (sums.sum(1) ** 2).sum() / total**2
    if pairs - sum(shape) + 1 <= 0:  # (almost) nobody is in two replicates: people are part of their replicate
        return Crossed(float(values.mean()), float(between), several)
    means = np.divide(sums, counts, out=np.zeros(shape), where=has_items)
    own = [means.sum(axis, keepdims=True) / has_items.sum(axis, keepdims=True) for axis in (0, 1)]
    rest = np.where(has_items, means - own[0] - own[1], 0.0)
    shared = (rest**2).sum() / (pairs - sum(shape) + 1) / pairs
    people = max(0.0, shape[1] / (shape[1] - 1) * (sums.sum(0) ** 2).sum() / total**2 - shared)
    variance, parts = between + people, between**2 / several + people**2 / (shape[1] - 1)
    return Crossed(float(values.mean()), float(variance), float(variance**2 / parts if parts else several))


def limits(estimate: Crossed, bounds: Bounds = (0.0, 1.0)) -> Bounds:
    """Return the interval of a mean by Student's t. If ``bounds`` are finite, it is computed on the logit scale: it
    stays inside them, and is not symmetric close to one of them."""
    low, high = bounds
    reach = float(stdtrit(estimate.df, 1 - TAIL)) * sqrt(estimate.variance)
    if isinf(high - low):
        return estimate.mean - reach, estimate.mean + reach
    share = (estimate.mean - low) / (high - low)
    scaled = reach / (high - low) / (share * (1 - share))
    one, other = (low + (high - low) * float(expit(logit(share) + way * scaled)) for way in (-1, 1))
    return one, other


def standard_errors(low, high, people) -> np.ndarray:
    """Return the standard errors behind intervals over this number of ``people``: half the width divided by the
    quantile, that of Student's t below FEW_PEOPLE, else the normal one."""
    people = np.asarray(people, float)
    quantile = np.where((people > 1) & (people < FEW_PEOPLE), stdtrit(people - 1, ENDS[1]), norm.ppf(ENDS[1]))
    return (np.asarray(high, float) - np.asarray(low, float)) / (2 * quantile)


def paired_p(difference, profiles, replicates) -> float:
    """Return the two-sided p for no mean difference between two models, from the ``difference`` [items] of their scores
    in several replicates: Student's t, or a sign-flip test if all people have the same difference."""
    difference, profiles = np.asarray(difference, float), np.asarray(profiles)
    mean, variance, df = crossed(difference, profiles, replicates)
    if variance > SAME**2:
        return float(2 * student.sf(abs(mean) / sqrt(variance), df))
    people, count = ByPerson.of(difference, profiles), len(np.unique(profiles))
    if people.alike:
        return 2.0 ** (1 - count) if np.abs(people.sums).max() > SAME else 1.0
    return float(2 * student.sf(abs(people.mean) / people.standard_error, count - 1))


def equivalence(difference: Interval, margin: float) -> str:
    """Whether a whole interval lies ``inside`` ±margin, ``outside`` on one side of it, or neither (``undecided``)."""
    if -margin <= difference.low and difference.high <= margin:
        return "inside"
    return "outside" if difference.low > margin or difference.high < -margin else "undecided"


def effective_items(sums: np.ndarray, counts: np.ndarray) -> float:
    """The number of independent items that the items of some people are worth (ANOVA estimate, Donner & Koval 1980);
    ``sums`` [people] are right answers, ``counts`` [people] all items."""
    total, mean = counts.sum(), float((counts**2).sum() / counts.sum())
    if len(counts) == 1:
        return 1.0
    s, n = np.append(sums, counts.mean() / 2), np.append(counts, counts.mean())  # and one imaginary person, half right
    shares, overall, people = s / n, s.sum() / n.sum(), len(n)
    if n.sum() <= people:  # one question per person: no correlation within people
        return float(total)
    between = (n * (shares - overall) ** 2).sum() / (people - 1)
    within = (n * shares * (1 - shares)).sum() / (n.sum() - people)
    size = (n.sum() - (n**2).sum() / n.sum()) / (people - 1)
    correlation = float(np.clip((between - within) / (between + (size - 1) * within), 0.0, 1.0))
    return float(total / (1 + (mean - 1) * correlation))


@lru_cache(maxsize=16)
def resample_counts(people: int, resamples: int, seed: int) -> np.ndarray:
    """How often each person is drawn in each resample [resamples, people]; all scores of a table use the same draws."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=resamples)
    return drawn.astype(float)


class ByPerson(NamedTuple):
    """The measured values [items], and their sum and count for each person [people]."""

    sums: np.ndarray
    counts: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, profiles: np.ndarray) -> ByPerson:
        measured = np.isfinite(values)
        values, codes = values[measured], pd.factorize(profiles[measured])[0]
        return cls(np.bincount(codes, values), np.bincount(codes).astype(float), values)

    @property
    def mean(self) -> float:
        return self.sums.sum() / self.counts.sum()

    @property
    def alike(self) -> bool:
        """Whether all people have the same mean."""
        return bool(np.ptp(self.sums / self.counts) < SAME)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean, from each person's sum minus the mean times the person's count."""
        people, residuals = len(self.counts), self.sums - self.mean * self.counts
        return sqrt(people / (people - 1) * (residuals**2).sum()) / self.counts.sum()

    def around(self) -> Bounds:
        """The ends of the bootstrap interval or, with few people, of Student's t."""
        count = len(self.counts)
        if count >= FEW_PEOPLE:
            weights = resample_counts(count, RESAMPLES, 0)
            return tuple(np.quantile((weights @ self.sums) / (weights @ self.counts), [TAIL, 1 - TAIL]))
        reach = stdtrit(count - 1, 1 - TAIL) * self.standard_error
        return self.mean - reach, self.mean + reach

    def close_to_an_end(self, bounds: Bounds) -> bool:
        """Whether bootstrap and Student's t fail: no spread between people, or a proportion close to 0 or 1."""
        low, high = bounds
        if len(self.counts) == 1 or self.alike:
            return True
        if not np.isin(self.values, bounds).all():
            return False
        right = (self.sums - low * self.counts) / (high - low)
        share = right.sum() / self.counts.sum()
        return effective_items(right, self.counts) * min(share, 1 - share) < RARE

    def within(self, low: float, high: float, bounds: Bounds) -> Interval:
        """The interval ``low`` to ``high``, cut to the bounds; it contains the mean even if numbers are rounded."""
        value, low, high = (float(number) for number in (self.mean, *np.clip([low, high], *bounds)))
        return Interval(value, min(low, value), max(high, value), len(self.values), len(self.counts))
