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
PER_CENT = 100.0
ASSUMED = ("people", "questions", "sd")  # columns that a table may have
COLUMNS = ["measure", "first", "second", "gap", "detectable", "least", "most", "verdict"]


def read(path: Path | str) -> pd.DataFrame:
    """A table of scores, a row a figure: ``method``, ``measure``, ``value``, and of people, questions and sd what the
    file has.

    The file has these columns, or one a measure beside ``method``, as papers print it; empty cells are left out. Raises
    KitError where a column is missing or a figure is no number.
    """
    try:
        table = pd.read_csv(path)
    except UnicodeDecodeError:
        raise KitError(f"cannot read {path}: save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise KitError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if "method" not in table:
        hint = ": separate columns by commas" if any(sign in str(table.columns[0]) for sign in ";\t") else ""
        raise KitError(f"{path} has no column 'method', only {', '.join(map(str, table))}{hint}")
    if "value" not in table:
        beside = [name for name in ("method", *ASSUMED) if name in table]
        table = table.melt(id_vars=beside, var_name="measure")
    for name in [one for one in ("value", *ASSUMED) if one in table]:
        numbers = pd.to_numeric(table[name].astype(str).str.removesuffix("%"), errors="coerce")
        if (broken := table[name].notna() & numbers.isna()).any():
            raise KitError(f"{path}: {table[name][broken.idxmax()]!r} in the column {name} is not a number")
        table[name] = numbers
    table = table.assign(measure=table.get("measure", "")).dropna(subset=["value"])
    if table.empty:
        raise KitError(f"{path} has no figure: a row a method and a column a measure are needed")
    if (twice := table.duplicated(["method", "measure"])).any():
        one = table[twice].iloc[0]
        raise KitError(
            f"{path}: {one['method']!r} has two figures for {one['measure']!r}: keep one, or name them apart"
        )
    return table


def audit(
    table: pd.DataFrame,
    people: int | None = None,
    questions: int = 1,
    top: float = PER_CENT,
    correlation: float = noise.LIKELY,
    together: float = 0.0,
) -> pd.DataFrame:
    """A row a pair of methods and measure (COLUMNS), in the unit of the table, whose best value is ``top``.

    ``people`` and ``questions`` (of each about a measure) hold where the table has no column of that name, and without
    a number of people nothing can be said; ``sd``, a standard deviation over people, makes a measure that is no share
    of right answers judgeable. ``correlation`` of answers about one person and ``together`` of the two models' are
    assumed; ``least`` and ``most`` are the smallest detectable gap over the assumed range of the former. Raises
    KitError for a value that is no share of ``top``, shares of 1 where ``top`` is 100, and assumptions that cannot be.
    """
    assumed = {"people": people or nan, "questions": questions, "sd": nan}
    table = table.assign(**{name: table[name].fillna(v) if name in table else v for name, v in assumed.items()})
    if ((table["value"] < 0) | (table["value"] > top)).any():
        raise KitError(f"a value lies outside 0 to {top:g}: name the measure's best value (top)")
    for name, least in {"people": 1, "questions": 1, "sd": 0}.items():
        if (table[name] < least).any():
            raise KitError(f"{name} of {table[table[name] < least].iloc[0]['method']!r} is below {least}")
    if not (0 <= correlation <= 1 and 0 <= together <= 1):
        raise KitError("correlation and together are shares from 0 to 1")
    if top == PER_CENT and 0 < table.loc[table["sd"].isna(), "value"].max() <= 1:
        raise KitError("all values lie between 0 and 1: give top=1, or write them in per cent")
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
