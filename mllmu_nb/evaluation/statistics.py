"""Intervals by person: questions about one person are answered well or badly together, so people are what varies.

An interval over items treats 50 answers about 10 people as 50 independent trials and is too narrow (with 24 people an
item-level bootstrap covers 90/87/79 % instead of 95 at an intra-person correlation of .1/.2/.4). Everything here
works on sums and counts per person:

- 30 people or more: percentile bootstrap, people resampled with all their items.
- fewer: Student's t on the people's means, weighted by their items (the linearised ratio estimator).
- right/wrong scores close to 0 or 1, where both fail, and scores without any spread: Wilson's interval on the
  effective number of items, so that a perfect score on few people does not pretend to be certain.

``benchmarks/coverage.py`` simulates how often the intervals hold the truth, ``benchmarks/coverage.csv`` is its table.
From 10 people on and up to an accuracy of .8, single scores and paired differences are covered within 92 to 97 %. With
Wilson taking over at 5 effective right or wrong answers, 10 people with 4 questions each were covered 98 % at .8; at
``RARE`` they are not. These paired differences are of models that disagree often, the second a tenth worse. Of models
that hardly disagree but for a few people forgotten as a whole (12 to 20 % of them), the spread of the people asked says
too little and intervals are wider (see :func:`paired_difference`): an interval within ±.1 was false in under 4 % of the
runs, and the truth was covered in 93 to 100 %, but in 84 % with 10 people, almost perfect scores and 15 % forgotten.
Elsewhere: of 5 people whose answers are correlated a score is covered less (t trusts five means too much); close to 1
up to 25 people are covered more, and more people with strongly correlated answers a little less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, nan, sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import chi2
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mllmu_nb.errors import KitError

FEW_PEOPLE = 30
RARE = 3.5  # right (or wrong) answers below which, in effective items, a proportion is close to its end
RATING = (1.0, 10.0)
SEEDS = ["data_seed", "train_seed", "unlearn_seed", "shot_seed"]
KEYS = ["base_model", "forget_ratio", "forget_draw", "method", "protocol", "variant", "modality", "seed", *SEEDS]
CELL = ["set", "task", "view", "scoring"]
COLUMNS = [*KEYS, *CELL, "metric", "value", "low", "high", "n_items", "n_profiles"]
# task → metric → column of items.parquet; parse failures are counted where a letter is asked for, and consistency is
# there where it was asked in all orders of the options
METRICS = {
    "classification": {"accuracy": "correct", "parse_failure": "unparsed", "consistency": "consistency"},
    "cloze": {"accuracy": "correct"},
    "generation": {name: name for name in ("rouge1", "rouge2", "rougeL", "bleu", "exact", "factuality")},
}


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

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    bounds: tuple[float, float] = (0.0, 1.0)


def interval(values, profiles, **settings) -> Interval:
    """Mean of ``values`` [items] with an interval over ``profiles`` [items], the person behind each item.

    NaN values count as not measured. ``settings`` are those of :class:`Settings`; the interval stays inside the bounds.
    """
    resamples, seed, level, bounds = Settings(**settings)
    sums, counts, values = _by_person(values, profiles)
    if not len(values):
        return Interval(nan, nan, nan, 0, 0)
    low, high = bounds
    if values.min() < low or values.max() > high:
        raise KitError(f"a score of {values.min():g} to {values.max():g} lies outside its range {low:g} to {high:g}")
    value = sums.sum() / counts.sum()
    if _is_close_to_an_end(values, sums, counts, bounds):
        share = (value - low) / (high - low)
        ends = _wilson(share, effective_items((sums - low * counts) / (high - low), counts), level)
        ends = tuple(low + end * (high - low) for end in ends)
    else:
        ends = _around(sums, counts, resamples, seed, level)
    # rounding must not push an end past the value itself
    lower, upper = (float(np.clip(end, low, high)) for end in ends)
    return Interval(float(value), min(lower, float(value)), max(upper, float(value)), len(values), len(counts))


def paired_difference(a, b, profiles, **settings) -> Interval:
    """Mean of ``a - b`` over items that two models both answered, all three ``[items]`` in the same order.

    What makes a person easy or hard for both models cancels, so this is narrower than two intervals side by side.
    An item that either model lacks is left out. Where the people hardly differ between the models, their spread says
    little about people who were not asked; so where all differ alike, both scores are close to an end or :func:`_few`
    people differ at all, the interval also holds what the two models' own make as independent ones (MOVER, Newcombe
    1998), and reaches as far as those of two models with the answers of either. ``settings`` as in :func:`interval`.
    """
    resamples, seed, level, bounds = Settings(**settings)
    a, b = np.asarray(a, float), np.asarray(b, float)
    difference = a - b
    sums, counts, kept = _by_person(difference, profiles)
    if not len(kept):
        return Interval(nan, nan, nan, 0, 0)
    value, reach = float(sums.sum() / counts.sum()), bounds[1] - bounds[0]
    known = np.isfinite(difference)
    own = [(scores[known], np.asarray(profiles)[known]) for scores in (a, b)]
    low, high = _around(sums, counts, resamples, seed, level) if len(counts) > 1 else (value, value)
    if _alike(sums, counts) or _few(sums) or all(_at_an_end(*scores, bounds) for scores in own):
        first, second = (interval(*scores, **settings) for scores in own)
        (down, up), (down_b, up_b) = ((m.value - m.low, m.high - m.value) for m in (first, second))
        agreeing = max(hypot(down, up), hypot(down_b, up_b))  # so that a first disagreement makes nothing narrower
        low = min(low, value - max(hypot(down, up_b), agreeing))
        high = max(high, value + max(hypot(up, down_b), agreeing))
    low, high = float(np.clip(low, -reach, reach)), float(np.clip(high, -reach, reach))
    return Interval(value, min(low, value), max(high, value), len(kept), len(counts))


def paired_p(a, b, profiles) -> float:
    """Two-sided p of no mean difference between two models, arguments as in :func:`paired_difference`.

    Student's t of the people's differences, weighted by their items: the test that the interval turned round is, to the
    letter below 30 people and nearly so above, where the interval is a bootstrap; only where models hardly disagree is
    the interval wider. A sign-flip test would agree within
    noise, but has no p below 2^(1 - people), which Holm over many comparisons never lets pass. It is used only where t
    cannot be, because all people differ alike: then only their number speaks. NaN where no item is common.
    """
    difference = np.asarray(a, float) - np.asarray(b, float)
    sums, counts, kept = _by_person(difference, profiles)
    if not len(kept):
        return nan
    if not kept.any():
        return 1.0
    people = len(counts)
    if people == 1 or _alike(sums, counts):
        return 2.0 ** (1 - people) if sums.any() else 1.0
    return float(2 * student.sf(abs(sums.sum() / counts.sum()) / standard_error(sums, counts), people - 1))


def holm(p_values) -> np.ndarray:
    """Holm's adjusted p-values, in the order given; one that is NaN stays so and does not count as a comparison."""
    p_values = np.asarray(p_values, float)
    adjusted, known = np.full(p_values.shape, nan), np.isfinite(p_values)
    if known.any():
        adjusted[known] = multipletests(p_values[known], method="holm")[1]
    return adjusted


def equivalence(found: Interval, margin: float) -> str:
    """Where an interval of a difference lies: ``inside`` ±margin as a whole, ``outside`` of it on one side as a whole.

    Anything else, an interval that is not known among it, is ``undecided``. At a level of .95 this is stricter than two
    one-sided tests at .05, which ask for the 90 % interval. Raises KitError for a margin that is not above 0.
    """
    if not margin > 0:
        raise KitError(f"an equivalence margin must be above 0, not {margin:g}")
    if -margin <= found.low and found.high <= margin:
        return "inside"
    return "outside" if found.low > margin or found.high < -margin else "undecided"


def variance_split(
    table: pd.DataFrame, factors: Sequence[str], value: str = "value", se: str | Mapping[str, str] | None = None
) -> pd.DataFrame:
    """How much of the variance of one score each factor (forget_draw, train_seed ..) makes, one row a factor.

    ``table`` has a row a run of one method on one metric: one factor changed at a time, or all crossed. A factor is
    judged by the groups of rows that agree in all the others: the pooled variance within them, less the mean of the
    squared ``se`` there, which is what sampling makes of it (Searle, Casella and McCulloch 1992). So a factor's share
    holds its interactions with the others, and what a repeated run would vary by itself.

    ``se`` is the column of a value's standard error, as far as levels do not share it; or a column for each factor, if
    they differ, with nothing taken off where a factor has none. Where each level asks other people (forget draws) that
    is the error of the score itself; where all ask the same, only the paired difference's over sqrt(2): the whole error
    would take off what they have in common, which never was in the variance.

    Columns: factor, levels, variance, sd, low, high. The last two limit the variance at 95 %: chi-square on levels - 1
    degrees, however many groups a level is in, as its effect is the same in them; exact for normal effects without
    ``se``, and as wide as the levels are few (of three, the upper end is 146 times the lower). What comes out negative
    is printed as 0; a factor that never varies alone has NaN. Raises KitError when a column is missing or two rows
    agree in every factor.
    """
    factors = list(factors)
    errors = dict.fromkeys(factors, se) if isinstance(se, str) else dict(se or {})
    lacking = [column for column in (*factors, value, *errors.values()) if column not in table]
    if lacking:
        raise KitError(f"the table to split the variance of lacks the columns {', '.join(map(str, lacking))}")
    known = table[np.isfinite(table[value].astype(float))]
    if known.duplicated(factors).any():
        first = known.loc[known.duplicated(factors), factors].iloc[0]
        raise KitError(f"two rows have {', '.join(f'{name} {first[name]}' for name in factors)}: one score a run")
    rows = [_component(known, name, [f for f in factors if f != name], value, errors.get(name)) for name in factors]
    return pd.DataFrame(rows, columns=["factor", "levels", "variance", "sd", "low", "high"])


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


def scores(items: pd.DataFrame, **settings) -> pd.DataFrame:
    """The long table of scores from the items of any number of runs: one row a metric, ``COLUMNS`` wide.

    View ``both`` pools the items of the two views. A metric that no item of a cell carries gives no row. ``seed`` is
    the run's ``unlearn_seed``, which a run has in common with the other three unless told otherwise. ``settings`` as in
    :func:`interval`. Raises ``KitError`` when two runs fall into one cell.
    """
    items = items.assign(unparsed=1.0 - items["parsed"].astype(float), seed=items["unlearn_seed"])
    if "run" in items:
        runs = items.groupby(KEYS, observed=True, dropna=False)["run"].unique()
        for shared in runs[runs.map(len) > 1]:
            raise KitError(f"runs {' and '.join(shared)} would be one row of the scores: score them apart")
    measured = dict.fromkeys(column for columns in METRICS.values() for column in columns.values())
    items = items[[*KEYS, *CELL, "profile", *(column for column in measured if column in items)]]  # a cell is a copy
    rows = []
    for view_items in (items, items.assign(view="both")):
        for key, cell in view_items.groupby([*KEYS, *CELL], sort=False, observed=True, dropna=False):
            named = dict(zip([*KEYS, *CELL], key, strict=True))
            people = cell["profile"].to_numpy()
            for metric, column in METRICS[named["task"]].items():
                if column not in cell or (metric == "parse_failure" and named["scoring"] != "letter"):
                    continue
                bounds = RATING if metric == "factuality" else (0.0, 1.0)
                found = interval(cell[column].to_numpy(float), people, **{**settings, "bounds": bounds})
                if found.n_items:
                    rows.append({**named, "metric": metric, **vars(found)})
    return pd.DataFrame(rows, columns=COLUMNS)


# ------------------------------------------------------------------------------------------------------------- inside


def _by_person(values, profiles) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum and count of the measured values of each person, and those values."""
    values, profiles = np.asarray(values, float), np.asarray(profiles)
    if values.shape != profiles.shape:
        raise KitError(f"{len(values)} values and {len(profiles)} profiles: every value needs its profile")
    known = np.isfinite(values)
    values, codes = values[known], pd.factorize(profiles[known])[0]
    return np.bincount(codes, values), np.bincount(codes).astype(float), values


def _alike(sums: np.ndarray, counts: np.ndarray) -> bool:
    """Whether people have one mean; up to rounding, or .1 scored twice and thrice would have a spread of 1e-17."""
    return bool(np.ptp(sums / counts) < 1e-9)


def _few(differences: np.ndarray) -> bool:
    """Whether fewer than RARE people, and fewer than half of them, differ at all between two models."""
    differing = (np.abs(differences) > 1e-9).sum()
    return bool(differing < min(RARE, len(differences) / 2))


def _around(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int, level: float) -> tuple[float, float]:
    people, tail = len(counts), (1 - level) / 2
    if people >= FEW_PEOPLE:
        weights = _resampled(people, resamples, seed)
        return tuple(np.quantile((weights @ sums) / (weights @ counts), [tail, 1 - tail]))
    value = sums.sum() / counts.sum()
    reach = student.ppf(1 - tail, people - 1) * standard_error(sums, counts)
    return value - reach, value + reach


def standard_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of a mean over items, from what each person adds to the sum beyond their share of it."""
    people, residuals = len(counts), sums - sums.sum() / counts.sum() * counts
    return sqrt(people / (people - 1) * (residuals**2).sum()) / counts.sum()


@lru_cache(maxsize=16)
def _resampled(people: int, resamples: int, seed: int) -> np.ndarray:
    """How often each person is drawn in each resample, [resamples, people]; the same for every score of a table."""
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=resamples)
    return drawn.astype(float)


def _component(table: pd.DataFrame, factor: str, others: list[str], value: str, se: str | None) -> tuple:
    """The row of :func:`variance_split` for one factor."""
    groups = [group for _, group in table.groupby(others, dropna=False)] if others else [table]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return factor, min(1, len(table)), nan, nan, nan, nan
    levels, weights = pd.concat(groups)[factor].nunique(), [len(group) - 1 for group in groups]
    between = np.average([group[value].var(ddof=1) for group in groups], weights=weights)
    sampling = np.average([(group[se] ** 2).mean() for group in groups], weights=weights) if se else 0.0
    ends = chi2.ppf([0.975, 0.025], levels - 1) / (levels - 1)
    variance, low, high = np.maximum([between - sampling, *(between / ends - sampling)], 0.0)
    return factor, levels, variance, sqrt(variance), low, high


def _at_an_end(values: np.ndarray, profiles: np.ndarray, bounds) -> bool:
    sums, counts, values = _by_person(values, profiles)
    return _is_close_to_an_end(values, sums, counts, bounds)


def _is_close_to_an_end(values: np.ndarray, sums: np.ndarray, counts: np.ndarray, bounds) -> bool:
    low, high = bounds
    if len(counts) == 1 or _alike(sums, counts):
        return True
    if not np.isin(values, bounds).all():
        return False
    right = (sums - low * counts) / (high - low)
    share = right.sum() / counts.sum()
    return effective_items(right, counts) * min(share, 1 - share) < RARE


def _wilson(share: float, items: float, level: float) -> tuple[float, float]:
    return proportion_confint(share * items, items, alpha=1 - level, method="wilson")
