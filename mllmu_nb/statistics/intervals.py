"""Intervals and paired tests over people: answers about one person are correlated, so people vary, not items.

All are at 95 %. docs/scoring.md ("Intervals") says which interval is used where, and how well they cover.
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

FEW_PEOPLE = 30  # below, Student's t; from there on, bootstrap
RESAMPLES = 2000
RARE = 3.5  # right (or wrong) answers below which, in effective items, a proportion is close to its end
SAME = 1e-9  # people's means nearer than that are equal: .1 scored twice and thrice would have a spread of 1e-17
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2


@dataclass(frozen=True)
class Interval:
    """A mean over items with its interval; all NaN where there is no item."""

    value: float
    low: float
    high: float
    n_items: int
    n_profiles: int


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

    def within(self, low: float, high: float, limits: tuple[float, float]) -> Interval:
        """The interval ``low`` to ``high``, inside the limits; rounding must not push an end past the value itself."""
        value, low, high = (float(number) for number in (self.mean, *np.clip([low, high], *limits)))
        return Interval(value, min(low, value), max(high, value), len(self.values), len(self.counts))


def interval(values, profiles, bounds: tuple[float, float] = (0.0, 1.0), resamples: int = RESAMPLES) -> Interval:
    """Mean of ``values`` [items] with an interval over ``profiles`` [items], the person behind each item.

    NaN and infinite values count as not measured. The interval stays inside ``bounds``; where these are infinite, a
    score without a spread between people has NaN for ends. Raises KitError for a value outside the bounds and for
    arrays of different lengths.
    """
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


def paired_difference(a, b, profiles, bounds: tuple[float, float] = (0.0, 1.0), resamples: int = RESAMPLES) -> Interval:
    """Mean of ``a - b`` over items that two models both answered, all three [items] in the same order.

    Narrower than two intervals side by side, and never narrower than MOVER (Newcombe 1998) where the people hardly
    differ. Items that either model lacks are left out; ``bounds`` are those of a score, as in :func:`interval`.
    """
    a, b, profiles = np.asarray(a, float), np.asarray(b, float), np.asarray(profiles)
    if isinf(reach := bounds[1] - bounds[0]):
        return interval(a - b, profiles, bounds, resamples)
    people, measured = _by_person(a - b, profiles), np.isfinite(a - b)
    if not len(people.values):
        return Interval(nan, nan, nan, 0, 0)
    own = [(scores[measured], profiles[measured]) for scores in (a, b)]
    low, high = _around(people, resamples) if len(people.counts) > 1 else (people.mean, people.mean)
    differing = (np.abs(people.sums) > SAME).sum()  # people, between the two models
    few = differing < min(RARE, len(people.sums) / 2)
    if people.alike or few or all(_close_to_an_end(_by_person(*scores), bounds) for scores in own):
        first, second = (interval(*scores, bounds, resamples) for scores in own)
        (down, up), (down_b, up_b) = ((m.value - m.low, m.high - m.value) for m in (first, second))
        agreeing = max(hypot(down, up), hypot(down_b, up_b))  # so that a first disagreement makes nothing narrower
        low = min(low, float(people.mean) - max(hypot(down, up_b), agreeing))
        high = max(high, float(people.mean) + max(hypot(up, down_b), agreeing))
    return people.within(low, high, (-reach, reach))


def paired_p(a, b, profiles) -> float:
    """Two-sided p of no mean difference between two models, arguments as in :func:`paired_difference`.

    Student's t of the people's differences, weighted by their items; a sign-flip test where all people differ alike.
    NaN where no item is common.
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
