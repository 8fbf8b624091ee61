"""Intervals of a model over people, and of a method over replicates crossed with people.

Answers about one person are correlated, so people vary, not items; models of one replicate share its forget set and
training, so of a method replicates vary as well. All are at 95 %. docs/scoring.md ("Intervals") says which interval is
used where, and how well they cover.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import hypot, isinf, nan, sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.errors import KitError

FEW_PEOPLE = 30  # below, Student's t; from there on, bootstrap
RESAMPLES = 2000
RARE = 3.5  # right (or wrong) answers below which, in effective items, a proportion is close to its end
SAME = 1e-9  # people's means nearer than that are equal: .1 scored twice and thrice would have a spread of 1e-17
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True)
class Interval:
    """A mean over items with its interval; all NaN where there is no item. Of one replicate it is over people alone."""

    value: float
    low: float
    high: float
    n_items: int
    n_profiles: int
    n_replicates: int = 1


class Crossed(NamedTuple):
    """A mean over items of replicates crossed with people, its variance, the degrees of freedom of that, and the parts
    of it: what replicates make (training, order, shots and forget set), and what recurring people add."""

    mean: float
    variance: float
    df: float
    replicates: float
    people: float


class ByPerson(NamedTuple):
    """The measured values [items], and their sum and count for each person [people]."""

    sums: np.ndarray
    counts: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> float:
        return self.sums.sum() / self.counts.sum()

    @property
    def alike(self) -> bool:
        """Whether all people have the same mean."""
        return bool(np.ptp(self.sums / self.counts) < SAME)

    def within(self, low: float, high: float, limits: tuple[float, float], replicates: int = 1) -> Interval:
        """The interval ``low`` to ``high``, inside the limits; rounding must not push an end past the value itself."""
        value, low, high = (float(number) for number in (self.mean, *np.clip([low, high], *limits)))
        return Interval(value, min(low, value), max(high, value), len(self.values), len(self.counts), replicates)


def interval(
    values, profiles, bounds: tuple[float, float] = (0.0, 1.0), resamples: int = RESAMPLES, replicates=None
) -> Interval:
    """Mean of ``values`` [items] with its interval; ``profiles`` [items] are the person behind each item.

    Where ``replicates`` [items] name several, the interval is over these crossed with people (:func:`crossed`), else
    over people. NaN and infinite values count as not measured. The interval stays inside ``bounds``; where these are
    infinite, a score without a spread between people has NaN for ends. Raises KitError for a value outside the bounds
    and for arrays of different lengths.
    """
    if several(values, replicates):
        own, measured = interval(values, profiles, bounds, resamples), _by_person(values, profiles)
        at_an_end = _close_to_an_end(measured, bounds)
        return _over_replicates(own, at_an_end, values, profiles, replicates, bounds)
    people, (low, high) = _by_person(values, profiles), bounds
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    smallest, largest = people.values.min(), people.values.max()
    if smallest < low or largest > high:
        raise KitError(f"a score of {smallest:g} to {largest:g} lies outside its range {low:g} to {high:g}")
    if not _close_to_an_end(people, bounds):
        ends = _around(people, resamples)
    elif isinf(high - low):
        ends = nan, nan
    else:
        items = effective_items((people.sums - low * people.counts) / (high - low), people.counts)
        share = (people.mean - low) / (high - low)
        low_end, high_end = proportion_confint(share * items, items, 1 - LEVEL, "wilson")
        ends = low + low_end * (high - low), low + high_end * (high - low)
    return people.within(*ends, bounds)


def paired_difference(
    a, b, profiles, bounds: tuple[float, float] = (0.0, 1.0), resamples: int = RESAMPLES, replicates=None
) -> Interval:
    """Mean of ``a - b`` over items that two models both answered, all [items] in the same order.

    Narrower than two intervals side by side, and never narrower than MOVER (Newcombe 1998) where the people hardly
    differ. Items that either model lacks are left out; ``bounds`` are those of a score, and ``replicates`` as in
    :func:`interval`.
    """
    a, b, profiles = np.asarray(a, float), np.asarray(b, float), np.asarray(profiles)
    if several(a - b, replicates):
        reach = bounds[1] - bounds[0]
        own, alike = paired_difference(a, b, profiles, bounds, resamples), _alike(a, b, profiles, bounds)
        return _over_replicates(own, alike, a - b, profiles, replicates, (-reach, reach))
    if isinf(reach := bounds[1] - bounds[0]):
        return interval(a - b, profiles, bounds, resamples)
    people, measured = _by_person(a - b, profiles), np.isfinite(a - b)
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    low, high = _around(people, resamples) if len(people.counts) > 1 else (people.mean, people.mean)
    if _alike(a, b, profiles, bounds):
        first, second = (interval(scores[measured], profiles[measured], bounds, resamples) for scores in (a, b))
        (down, up), (down_b, up_b) = ((m.value - m.low, m.high - m.value) for m in (first, second))
        agreeing = max(hypot(down, up), hypot(down_b, up_b))  # so that a first disagreement makes nothing narrower
        low = min(low, float(people.mean) - max(hypot(down, up_b), agreeing))
        high = max(high, float(people.mean) + max(hypot(up, down_b), agreeing))
    return people.within(low, high, (-reach, reach))


def _alike(a: np.ndarray, b: np.ndarray, profiles: np.ndarray, bounds: tuple[float, float]) -> bool:
    """Whether two models differ about too few people, or are both too close to an end, for their spread to count."""
    people, measured = _by_person(a - b, profiles), np.isfinite(a - b)
    differing = (np.abs(people.sums) > SAME).sum()  # people, between the two models
    own = (_by_person(scores[measured], profiles[measured]) for scores in (a, b))
    few = differing < min(RARE, len(people.sums) / 2)
    return people.alike or bool(few) or all(_close_to_an_end(one, bounds) for one in own)


def several(values, replicates) -> bool:
    """Whether the measured ``values`` [items] are of more than one of the ``replicates`` [items]."""
    if replicates is None:
        return False
    known = np.asarray(replicates)[np.isfinite(np.asarray(values, float))]
    return len(known) > 0 and bool((known != known[0]).any())


def crossed(values, profiles, replicates) -> Crossed:
    """The mean of finite ``values`` [items] and its variance where replicates are drawn anew, and people too.

    A person is known by ``profiles`` and may recur in every replicate (retain people) or stand in one (forget people).
    The variance is that between replicates, and where people recur also that between people, less what the pairs of the
    two make by themselves, which both hold; degrees of freedom by Satterthwaite. (Two crossed random factors: Searle,
    Casella and McCulloch 1992, in the linearised form of Cameron, Gelbach and Miller 2011.)
    """
    values, total = np.asarray(values, float), len(values)
    row, column = pd.factorize(np.asarray(replicates))[0], pd.factorize(np.asarray(profiles))[0]
    shape = row.max() + 1, column.max() + 1
    cell, size = np.ravel_multi_index((row, column), shape), shape[0] * shape[1]
    counts = np.bincount(cell, minlength=size).reshape(shape)
    sums = np.bincount(cell, values - values.mean(), size).reshape(shape)
    there = counts > 0
    several, pairs = shape[0] - 1, there.sum()
    between = shape[0] / several * (sums.sum(1) ** 2).sum() / total**2
    if pairs - sum(shape) + 1 <= 0:  # nobody recurs, or hardly anybody: people are part of their replicate
        return Crossed(float(values.mean()), float(between), several, float(between), 0.0)
    means = np.divide(sums, counts, out=np.zeros(shape), where=there)
    own = [means.sum(axis, keepdims=True) / there.sum(axis, keepdims=True) for axis in (0, 1)]
    rest = np.where(there, means - own[0] - own[1], 0.0)
    shared = (rest**2).sum() / (pairs - sum(shape) + 1) / pairs
    people = max(0.0, shape[1] / (shape[1] - 1) * (sums.sum(0) ** 2).sum() / total**2 - shared)
    variance, parts = between + people, between**2 / several + people**2 / (shape[1] - 1)
    df = variance**2 / parts if parts else several
    return Crossed(float(values.mean()), float(variance), float(df), float(between), float(people))


def limits(estimate: Crossed, bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """The ends of the interval of a mean by Student's t, on the logit scale where there are ``bounds``."""
    low, high = bounds
    reach = float(student.ppf(1 - TAIL, estimate.df)) * sqrt(estimate.variance)
    if isinf(high - low):
        return estimate.mean - reach, estimate.mean + reach
    share = (estimate.mean - low) / (high - low)
    scaled = reach / (high - low) / (share * (1 - share))
    one, other = (low + (high - low) * float(expit(logit(share) + way * scaled)) for way in (-1, 1))
    return one, other


def _over_replicates(
    over_people: Interval, at_least: bool, values, profiles, replicates, bounds: tuple[float, float]
) -> Interval:
    """The interval over replicates crossed with people, ``at_least`` as wide as that ``over_people`` where this is said
    or all replicates agree. On the logit scale of what has bounds, so close to them it is not symmetric."""
    values, (low, high) = np.asarray(values, float), bounds
    measured = np.isfinite(values)
    values, profiles, replicates = values[measured], np.asarray(profiles)[measured], np.asarray(replicates)[measured]
    estimate, count = crossed(values, profiles, replicates), len(np.unique(replicates))
    if not low < estimate.mean < high:
        return replace(over_people, n_replicates=count)
    ends = limits(estimate, bounds)
    if at_least or estimate.variance < SAME**2:
        ends = min(ends[0], over_people.low), max(ends[1], over_people.high)
    return replace(over_people, low=ends[0], high=ends[1], n_replicates=count)


def paired_p(a, b, profiles, replicates=None) -> float:
    """Two-sided p of no mean difference between two models, arguments as in :func:`paired_difference`.

    Student's t of the people's differences, weighted by their items, or of replicates crossed with people; a sign-flip
    test where all people differ alike. NaN where no item is common.
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    if several(difference, replicates) and (measured := np.isfinite(difference)).any():
        estimate = crossed(*(np.asarray(one)[measured] for one in (difference, profiles, replicates)))
        if estimate.variance > SAME**2:
            return float(2 * student.sf(abs(estimate.mean) / sqrt(estimate.variance), estimate.df))
    people = _by_person(np.asarray(a, float) - np.asarray(b, float), profiles)
    if not len(people.values):
        return nan
    if not people.values.any():
        return 1.0
    count = len(people.counts)
    if count == 1 or people.alike:
        return 2.0 ** (1 - count) if people.sums.any() else 1.0
    return float(2 * student.sf(abs(people.mean) / standard_error(people.sums, people.counts), count - 1))


def holm(p_values) -> np.ndarray:
    """Holm's adjusted p-values, in the order given; one that is NaN stays so and does not count as a comparison."""
    adjusted = np.array(p_values, float)
    known = np.isfinite(adjusted)
    if known.any():
        adjusted[known] = multipletests(adjusted[known], method="holm")[1]
    return adjusted


def equivalence(difference: Interval, margin: float) -> str:
    """Whether a whole interval lies ``inside`` ±margin, ``outside`` on one side of it, or neither (``undecided``).

    Raises KitError for a margin that is not above 0.
    """
    if not margin > 0:
        raise KitError(f"an equivalence margin must be above 0, not {margin:g}")
    if -margin <= difference.low and difference.high <= margin:
        return "inside"
    return "outside" if difference.low > margin or difference.high < -margin else "undecided"


def effective_items(sums: np.ndarray, counts: np.ndarray) -> float:
    """How many independent items the items of some people are worth (ANOVA estimate, Donner & Koval 1980).

    ``sums`` are right answers and ``counts`` items [people].
    """
    total, mean = counts.sum(), float((counts**2).sum() / counts.sum())
    if len(counts) == 1:
        return 1.0
    s, n = np.append(sums, counts.mean() / 2), np.append(counts, counts.mean())  # one imagined person more, half right
    shares, overall, people = s / n, s.sum() / n.sum(), len(n)
    if n.sum() <= people:  # one question each: nothing to be correlated with
        return float(total)
    between = (n * (shares - overall) ** 2).sum() / (people - 1)
    within = (n * shares * (1 - shares)).sum() / (n.sum() - people)
    size = (n.sum() - (n**2).sum() / n.sum()) / (people - 1)
    correlation = float(np.clip((between - within) / (between + (size - 1) * within), 0.0, 1.0))
    return float(total / (1 + (mean - 1) * correlation))


def standard_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of a mean over items, from what each person adds to the sum beyond their share of it."""
    people, residuals = len(counts), sums - sums.sum() / counts.sum() * counts
    return sqrt(people / (people - 1) * (residuals**2).sum()) / counts.sum()


@lru_cache(maxsize=16)
def resample_counts(people: int, resamples: int, seed: int) -> np.ndarray:
    """How often each person is drawn in each resample, [resamples, people]; the same for every score of a table."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=resamples)
    return drawn.astype(float)


def _by_person(values, profiles) -> ByPerson:
    values, profiles = np.asarray(values, float), np.asarray(profiles)
    if values.shape != profiles.shape:
        raise KitError(f"{len(values)} values and {len(profiles)} profiles: every value needs its profile")
    measured = np.isfinite(values)
    values, codes = values[measured], pd.factorize(profiles[measured])[0]
    return ByPerson(np.bincount(codes, values), np.bincount(codes).astype(float), values)


def _around(people: ByPerson, resamples: int) -> tuple[float, float]:
    count = len(people.counts)
    if count >= FEW_PEOPLE:
        weights = resample_counts(count, resamples, 0)
        return tuple(np.quantile((weights @ people.sums) / (weights @ people.counts), [TAIL, 1 - TAIL]))
    reach = student.ppf(1 - TAIL, count - 1) * standard_error(people.sums, people.counts)
    return people.mean - reach, people.mean + reach


def _close_to_an_end(people: ByPerson, bounds: tuple[float, float]) -> bool:
    """Whether bootstrap and Student's t fail: no spread between people, or a proportion close to 0 or 1."""
    low, high = bounds
    if len(people.counts) == 1 or people.alike:
        return True
    if not np.isin(people.values, bounds).all():
        return False
    right = (people.sums - low * people.counts) / (high - low)
    share = right.sum() / people.counts.sum()
    return effective_items(right, people.counts) * min(share, 1 - share) < RARE
