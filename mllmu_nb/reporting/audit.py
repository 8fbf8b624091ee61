"""Audit a table of scores: which of its gaps exceed the noise, by how many people and questions are behind them.

The rule is that of :mod:`~mllmu_nb.reporting.noise`: a gap exceeds the noise where it is larger than what a comparison
at 95 % detects with 80 % power. Here the table may be anybody's.
"""

from __future__ import annotations

from itertools import combinations
from math import isnan, nan
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mllmu_nb.errors import KitError
from mllmu_nb.reporting import noise, plots

EXCEEDS, COULD, UNKNOWN = noise.EXCEEDS, noise.COULD, "cannot be said"
COLUMNS = ["measure", "first", "second", "gap", "detectable", "least", "most", "verdict"]


def read(path: Path | str) -> pd.DataFrame:
    """A table of scores, a row a figure: ``method``, ``measure``, ``value``, and of people, questions and sd what the
    file has.

    The file has these columns, or one a measure beside ``method``, as papers print it; empty cells are left out. Raises
    KitError where a column is missing or a figure is no number.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise KitError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if "method" not in table:
        raise KitError(f"{path} has no column 'method', only {', '.join(map(str, table))}")
    if "value" not in table:
        beside = [name for name in ("method", "people", "questions", "sd") if name in table]
        table = table.melt(id_vars=beside, var_name="measure")
    values = pd.to_numeric(table["value"], errors="coerce")
    if (broken := table["value"].notna() & values.isna()).any():
        raise KitError(f"{path}: {table['value'][broken.idxmax()]!r} is not a number")
    return table.assign(value=values, measure=table.get("measure", "")).dropna(subset=["value"])


def audit(
    table: pd.DataFrame,
    people: int | None = None,
    questions: int = 1,
    top: float = 100.0,
    correlation: float = noise.LIKELY,
    together: float = 0.0,
) -> pd.DataFrame:
    """A row a pair of methods and measure (COLUMNS), in the unit of the table, whose best value is ``top``.

    ``people`` and ``questions`` (of each about a measure) hold where the table has no column of that name, and without
    a number of people nothing can be said; ``sd``, a standard deviation over people, makes a measure that is no share
    of right answers judgeable. ``correlation`` of answers about one person and ``together`` of the two models' are
    assumed; ``least`` and ``most`` are the smallest detectable gap over the assumed range of the former. Raises
    KitError for a value that is no share of ``top``.
    """
    assumed = {"people": people or nan, "questions": questions, "sd": nan}
    table = table.assign(**{name: table[name].fillna(v) if name in table else v for name, v in assumed.items()})
    if ((table["value"] < 0) | (table["value"] > top)).any():
        raise KitError(f"a value lies outside 0 to {top:g}: name the measure's best value (top)")
    rows = []
    for measure, cell in table.groupby("measure", sort=False):
        for a, b in combinations(cell.itertuples(), 2):
            limits = [noise.smallest(a, b, rho, together, top) for rho in (correlation, *noise.CORRELATIONS)]
            gap = a.value - b.value
            verdict = UNKNOWN if isnan(limits[0]) else EXCEEDS if abs(gap) > limits[0] else COULD
            rows.append([measure, a.method, b.method, gap, limits[0], min(limits), max(limits), verdict])
    return pd.DataFrame(rows, columns=COLUMNS)


@plots.styled
def figure(gaps: pd.DataFrame, most: int = 24) -> Figure:
    """The ``most`` largest gaps, each with the smallest detectable one as its whisker: one that reaches 0 could be
    noise. Filled: exceeds the noise; hollow: does not. Raises KitError where no gap could be judged."""
    known = gaps[gaps["verdict"] != UNKNOWN]
    if known.empty:
        raise KitError("no gap has a known number of people")
    known = known.assign(size=known["gap"].abs()).nlargest(most, "size")
    exceeds = known["verdict"] == EXCEEDS
    drawn = known.assign(
        name=known["first"] + " − " + known["second"] + known["measure"].map(lambda name: f", {name}" if name else ""),
        low=known["gap"] - known["detectable"],
        high=known["gap"] + known["detectable"],
        colour=np.where(exceeds, plots.RIGHT, plots.GREY),
        filled=exceeds,
    )
    below = ["Gap and, to both sides, the smallest that could be detected. Hollow and grey: could be noise."]
    return plots.forest(drawn, y="name", x="gap", right="verdict", below=below)
