"""Intervals by person: answers about one person are correlated, so people are the units that vary, not items.

Everything works on sums and counts per person:

- 30 people or more: percentile bootstrap, people resampled with all their items.
- fewer: Student's t on the people's means, weighted by their items (the linearised ratio estimator).
- right/wrong scores close to 0 or 1, where both fail, and scores without any spread: Wilson's interval on the
  effective number of items, so that a perfect score of few people is not certain.

``benchmarks/coverage.py`` simulates how often the intervals cover the truth, with the results in
``benchmarks/coverage.csv``: from 10 people on and up to an accuracy of .8, scores and paired differences are covered
within 92 to 97 %. Closer to 1 intervals are wider than they need be; of 5 people with correlated answers, narrower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import hypot, isinf, nan, sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.errors import KitError

FEW_PEOPLE = 30
RESAMPLES = 2000
RARE = 3.5  # right (or wrong) answers below which, in effective items, a proportion is close to its end
SAME = 1e-9  # people's means nearer than that are equal: .1 scored twice and thrice would have a spread of 1e-17


@dataclass(frozen=True)
class Interval:
    """A mean over items with its interval; all NaN where there is no item."""

    value: float
    low: float
    high: float
    n_items: int
    n_profiles: int


class Settings(NamedTuple):
    """How an interval is made: bootstrap resamples and their seed, its level, and the range a value can have."""

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = 0.95
    bounds: tuple[float, float] = (0.0, 1.0)


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


def interval(values, profiles, **settings) -> Interval:
    """Mean of ``values`` [items] with an interval over ``profiles`` [items], the person behind each item.

    NaN and infinite values count as not measured. ``settings`` are those of :class:`Settings`; the interval stays
    inside the bounds. Where these are infinite, a score without a spread between people has NaN for ends. Raises
    KitError for a value outside the bounds and for arrays of different lengths.
    """
    resamples, seed, level, (low, high) = Settings(**settings)
    people = _by_person(values, profiles)
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    if people.values.min() < low or people.values.max() > high:
        smallest, largest = people.values.min(), people.values.max()
        raise KitError(f"a score of {smallest:g} to {largest:g} lies outside its range {low:g} to {high:g}")
    value = float(people.mean)
    if not _close_to_an_end(people, (low, high)):
        ends = _around(people, resamples, seed, level)
    elif isinf(high - low):
        ends = nan, nan
    else:
        items = effective_items((people.sums - low * people.counts) / (high - low), people.counts)
        share = (people.mean - low) / (high - low)
        ends = proportion_confint(share * items, items, alpha=1 - level, method="wilson")
        ends = tuple(low + end * (high - low) for end in ends)
    # rounding must not push an end past the value itself
    lower, upper = (float(np.clip(end, low, high)) for end in ends)
    return Interval(value, min(lower, value), max(upper, value), len(people.values), len(people.counts))


def paired_difference(a, b, profiles, **settings) -> Interval:
    """Mean of ``a - b`` over items that two models both answered, all three ``[items]`` in the same order.

    What makes a person easy or hard for both models cancels, so this is narrower than two intervals side by side.
    An item that either model lacks is left out. Where the people hardly differ between the models, their spread says
    little about people who were not asked; so where all differ alike, both scores are close to an end, or hardly anyone
    differs (:func:`_few`), the interval also covers what the two models' own intervals make as independent ones (MOVER,
    Newcombe 1998), and reaches as far as those of two models with the answers of either. ``settings`` as in
    :func:`interval`; without finite bounds nothing is close to an end.
    """
    resamples, seed, level, bounds = Settings(**settings)
    a, b = np.asarray(a, float), np.asarray(b, float)
    if isinf(reach := bounds[1] - bounds[0]):
        return interval(a - b, profiles, **settings)
    people = _by_person(a - b, profiles)
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    value = float(people.mean)
    measured = np.isfinite(a - b)
    own = [(scores[measured], np.asarray(profiles)[measured]) for scores in (a, b)]
    low, high = _around(people, resamples, seed, level) if len(people.counts) > 1 else (value, value)
    if people.alike or _few(people.sums) or all(_close_to_an_end(_by_person(*scores), bounds) for scores in own):
        first, second = (interval(*scores, **settings) for scores in own)
        (down, up), (down_b, up_b) = ((m.value - m.low, m.high - m.value) for m in (first, second))
        agreeing = max(hypot(down, up), hypot(down_b, up_b))  # so that a first disagreement makes nothing narrower
        low = min(low, value - max(hypot(down, up_b), agreeing))
        high = max(high, value + max(hypot(up, down_b), agreeing))
    low, high = float(np.clip(low, -reach, reach)), float(np.clip(high, -reach, reach))
    return Interval(value, min(low, value), max(high, value), len(people.values), len(people.counts))


def paired_p(a, b, profiles) -> float:
    """Two-sided p of no mean difference between two models, arguments as in :func:`paired_difference`.

    Student's t of the people's differences, weighted by their items: below 30 people the interval's own test. A
    sign-flip test would agree, but has no p below 2^(1 - people), which Holm's correction over many comparisons never
    lets pass; it is used only where all people differ alike and only their number counts. NaN where no item is common.
    """
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
    p_values = np.asarray(p_values, float)
    adjusted, known = np.full(p_values.shape, nan), np.isfinite(p_values)
    if known.any():
        adjusted[known] = multipletests(p_values[known], method="holm")[1]
    return adjusted


def equivalence(difference: Interval, margin: float) -> str:
    """Where an interval of a difference lies: ``inside`` ±margin as a whole, ``outside`` of it on one side as a whole.

    Anything else, an unknown interval among it, is ``undecided``. At a level of .95 this is stricter than two one-sided
    tests at .05, which ask for the 90 % interval. Raises KitError for a margin that is not above 0.
    """
    if not margin > 0:
        raise KitError(f"an equivalence margin must be above 0, not {margin:g}")
    if -margin <= difference.low and difference.high <= margin:
        return "inside"
    return "outside" if difference.low > margin or difference.high < -margin else "undecided"


def effective_items(sums: np.ndarray, counts: np.ndarray) -> float:
    """How many independent items the items of some people are worth: n / (1 + (m - 1) ICC).

    ``sums`` are right answers and ``counts`` items, one entry a person; m is the item-weighted mean of counts. The
    intra-person correlation is the ANOVA estimate (Donner & Koval 1980) for right/wrong scores, from the people and
    one imagined person more of whose answers half are right: without that person a perfect score would say nothing
    about its correlation. A perfect score then counts as an ICC of about .4.
    """
    total, mean = counts.sum(), float((counts**2).sum() / counts.sum())
    if len(counts) == 1:
        return 1.0
    s, n = np.append(sums, counts.mean() / 2), np.append(counts, counts.mean())
    shares, overall, people = s / n, s.sum() / n.sum(), len(n)
    between = (n * (shares - overall) ** 2).sum() / (people - 1)
    if n.sum() <= people:  # one question each: nothing to be correlated with
        return float(total)
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


def _around(people: ByPerson, resamples: int, seed: int, level: float) -> tuple[float, float]:
    count, tail = len(people.counts), (1 - level) / 2
    if count >= FEW_PEOPLE:
        weights = resample_counts(count, resamples, seed)
        return tuple(np.quantile((weights @ people.sums) / (weights @ people.counts), [tail, 1 - tail]))
    reach = student.ppf(1 - tail, count - 1) * standard_error(people.sums, people.counts)
    return people.mean - reach, people.mean + reach


def _few(differences: np.ndarray) -> bool:
    """Whether fewer than RARE people, and fewer than half of them, differ at all between two models."""
    differing = (np.abs(differences) > SAME).sum()
    return bool(differing < min(RARE, len(differences) / 2))


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
