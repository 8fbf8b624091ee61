"""Orders: groups that cannot be told apart, and the agreement of two orders."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from math import nan

import numpy as np
from scipy.stats import kendalltau


def shared_letters(names: Sequence[Hashable], apart: Iterable[frozenset]) -> dict[Hashable, str]:
    """Letters by name, such that two names share one exactly if they are not ``apart``; "a" holds the first name.

    Splits one group of all at every pair, dropping groups that lie in another (insert and absorb, Piepho 2004).
    """
    groups = [frozenset(names)]
    for pair in apart:
        split = {group - {one} for group in groups if pair <= group for one in pair}
        split |= {group for group in groups if not pair <= group}
        groups = [group for group in split if not any(group < other for other in split)]
    groups.sort(key=lambda group: sorted(names.index(name) for name in group))
    return {name: "".join(letter(i) for i, group in enumerate(groups) if name in group) for name in names}


def letter(number: int) -> str:
    """0 → a, 25 → z, 26 → aa."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def kendall_tau(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Kendall's τ of two lists and its exact two-sided p; NaN where a list has no order at all.

    With ties it is τ-b, and p the share of all orders of the second list with a τ as far from 0.
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    distinct, count = [len(np.unique(values)) for values in (a, b)], len(a)
    if min(distinct, default=0) < 2:
        return nan, nan
    if distinct == [count, count]:
        result = kendalltau(a, b, method="exact")
        return float(result.statistic), float(result.pvalue)
    # |pairs in order − pairs in reverse| of all orders, the first as given: τ-b in a common unit
    first, second = np.triu_indices(count, 1)
    orders = np.array(list(itertools.permutations(b)))
    signs = np.sign(a[first] - a[second])
    agreeing = np.abs(np.sign(orders[:, first] - orders[:, second]) @ signs)
    return float(kendalltau(a, b).statistic), float(np.mean(agreeing >= agreeing[0]))


def smallest_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The smallest p that :func:`kendall_tau` could give to lists of these values in any order (2/n! without ties)."""
    ours, theirs = sorted(ours), sorted(theirs)
    return min(kendall_tau(ours, order)[1] for order in (theirs, theirs[::-1]))
