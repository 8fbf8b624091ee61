"""Which factors make a score vary, and how much: one-way variance components."""

from collections.abc import Collection
from math import nan, sqrt

import numpy as np
import pandas as pd
from scipy.stats import chi2

from mllmu_nb.errors import KitError
from mllmu_nb.statistics.intervals import ENDS


def variance_split(table: pd.DataFrame, factors: list[str], drawn: Collection[str]) -> pd.DataFrame:
    """Split the variance of one score by factor: docs/scoring.md ("Variance components").

    ``table`` has one ``value`` per run, its standard error ``se``, and at least two ``factors``; the levels of those in
    ``drawn`` have different people. Columns: factor, levels, variance, sd, and low and high, the 95 % limits of the
    variance; NaN for a factor that never varies alone. Raises KitError if two rows agree in every factor. Source:
    Searle, Casella and McCulloch 1992.
    """
    rows = []
    table = table[np.isfinite(table["value"].astype(float))]
    if table.duplicated(factors).any():
        first = table.loc[table.duplicated(factors), factors].iloc[0]
        raise KitError(f"two rows have {', '.join(f'{name} {first[name]}' for name in factors)}: keep one per run")
    for factor in factors:
        others = [name for name in factors if name != factor]
        groups = [group for _, group in table.groupby(others, dropna=False) if len(group) > 1]
        if not groups:
            rows.append((factor, min(1, len(table)), nan, nan, nan, nan))
            continue
        levels, weights = pd.concat(groups)[factor].nunique(), [len(group) - 1 for group in groups]
        between = np.average([group["value"].var(ddof=1) for group in groups], weights=weights)
        sampling = np.average([(group["se"] ** 2).mean() for group in groups], weights=weights) * (factor in drawn)
        ends = chi2.ppf(ENDS[::-1], levels - 1) / (levels - 1)
        variance, low, high = np.maximum([between - sampling, *(between / ends - sampling)], 0.0)
        rows.append((factor, levels, variance, sqrt(variance), low, high))
    return pd.DataFrame(rows, columns=["factor", "levels", "variance", "sd", "low", "high"])
