"""How often the kit's 95 % intervals contain the truth, on simulated people.

    python benchmarks/coverage.py [--runs 4000] [--table benchmarks/coverage.csv] [--only sparse]

The simulation makes the data that the intervals are meant for. Each person has one chance of a right answer to every
question, drawn from a beta distribution with the mean (accuracy) and the intra-person correlation of the cell. In a
comparison, the second model is right ``BEHIND`` less often on the same questions. With probability ``SHARED`` a person
is as hard for both models (the same quantile of both distributions), and with probability ``SHARED`` a question is (the
same uniform draw). ``coverage`` is the share of runs whose interval contains the true value, ``error`` its Monte-Carlo
standard error, ``half_width`` the mean half-width. The kit promises 92 to 97 % for 10 people or more and an accuracy of
.8 or less; status 1 means that such a cell misses this. All other cells are reported too, and ``beware`` warns about
them. Everything is seeded.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta

from mllmu_nb.errors import KitError
from mllmu_nb.statistics.intervals import equivalence, interval, paired_difference

ACCURACIES, PROFILES, CORRELATIONS = (0.5, 0.8, 0.95), (5, 10, 25, 75), (0.0, 0.1, 0.4)
ITEMS = (10, 4)  # questions per person: multiple choice of both views, generation or cloze of both views
STATISTICS = ("interval", "paired_difference")
BEHIND, SHARED = 0.1, 0.5
# accuracy of both models, and the share of people that the second has forgotten; ten questions per person
SPARSE, ANEW, MARGIN = ((0.98, 0.12), (0.98, 0.15), (0.6, 0.2)), 0.05, 0.1
FAMILIES = (*STATISTICS, "sparse")
BAR = (0.92, 0.97)
PROMISED = (10, 0.8)  # the bar has to be met from this many people on, up to this accuracy
ROUNDED = ["coverage", "error", "half_width", "inside"]
CELL = ["statistic", "accuracy", "profiles", "correlation", "items", "forgotten"]


def chances(quantiles: np.ndarray, accuracy: float, correlation: float) -> np.ndarray:
    """Return people's chances of a right answer, from their quantiles (0 to 1) among all people."""
    if not correlation:
        return np.full(quantiles.shape, accuracy)
    spread = (1 - correlation) / correlation
    return beta.ppf(quantiles, accuracy * spread, (1 - accuracy) * spread)


def answers(rng, runs: int, people: int, items: int, accuracy: float, correlation: float) -> tuple[np.ndarray, ...]:
    """Right/wrong answers of both models, each [runs, people · items]."""
    found, person, luck = [], rng.random((runs, people)), rng.random((runs, people, items))
    for share in (accuracy, accuracy - BEHIND):
        right = luck < chances(person, share, correlation)[..., None]
        found.append(right.reshape(runs, -1).astype(float))
        person = np.where(rng.random(person.shape) < SHARED, person, rng.random(person.shape))
        luck = np.where(rng.random(luck.shape) < SHARED, luck, rng.random(luck.shape))
    return tuple(found)


def hardly_disagreeing(rng, runs: int, people: int, items: int, accuracy: float, forgotten: float):
    """Right/wrong answers of two models that hardly differ except on forgotten people, each [runs, people · items]."""
    first, anew = (rng.random((runs, people, items)) < accuracy for _ in range(2))
    second = np.where(rng.random(first.shape) < ANEW, anew, first)
    second &= rng.random((runs, people, 1)) >= forgotten
    return tuple(one.reshape(runs, -1).astype(float) for one in (first, second))


def cover(statistic: str, runs: int, seed: int, accuracy: float, people: int, correlation: float, items: int) -> dict:
    """Return the row of one statistic in one cell of the grid."""
    cell = [int(1000 * accuracy), people, int(1000 * correlation), items]
    first, second = answers(np.random.default_rng([seed, *cell]), runs, people, items, accuracy, correlation)
    who, at = np.repeat(np.arange(people), items), (statistic, accuracy, people, correlation, items, 0.0)
    if statistic == "interval":
        return held([interval(a, who) for a in first], accuracy, at)
    return held([paired_difference(a, b, who) for a, b in zip(first, second, strict=True)], BEHIND, at)


def cover_sparse(runs: int, seed: int, accuracy: float, people: int, forgotten: float) -> dict:
    """Return the row of one cell of models that hardly disagree."""
    rng, items = np.random.default_rng([seed, int(1000 * accuracy), people, int(1000 * forgotten)]), ITEMS[0]
    both = hardly_disagreeing(rng, runs, people, items, accuracy, forgotten)
    found = [paired_difference(a, b, np.repeat(np.arange(people), items)) for a, b in zip(*both, strict=True)]
    inside = float(np.mean([equivalence(each, MARGIN) == "inside" for each in found]))
    at = ("sparse", accuracy, people, 0.0, items, forgotten)
    return held(found, accuracy * forgotten, at) | {"inside": inside}


def held(found: list, truth: float, at: tuple) -> dict:
    """Return the row of cell ``at``: how often these intervals contain the ``truth``."""
    low, high = np.array([[each.low, each.high] for each in found]).T
    # a limit that equals the truth up to rounding contains it
    coverage = float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).mean())
    row = dict(zip(CELL, at, strict=True)) | {"coverage": coverage}
    row["error"] = sqrt(coverage * (1 - coverage) / len(found))
    return row | {"half_width": float((high - low).mean() / 2), "inside": float("nan"), "runs": len(found)}


def beware(row: pd.Series) -> str:
    """Return warnings about a cell: why nothing is promised for it, and on which side it misses the bar."""
    warnings = [] if row["profiles"] >= PROMISED[0] else [f"fewer than {PROMISED[0]} people"]
    warnings += ["hardly any disagreement"] if row["statistic"] == "sparse" else []
    warnings += [] if row["accuracy"] <= PROMISED[1] else ["close to 1"]
    warnings += ["too narrow"] if row["coverage"] < BAR[0] else ["too wide"] if row["coverage"] > BAR[1] else []
    return ", ".join(warnings)


def simulate(runs: int, seed: int, families=FAMILIES) -> pd.DataFrame:
    """The table of these families, one row per cell."""
    grid = list(product(ITEMS, ACCURACIES, PROFILES, CORRELATIONS))
    rows = []
    for statistic in (name for name in families if name in STATISTICS):
        rows += [cover(statistic, runs, seed, accuracy, people, icc, items) for items, accuracy, people, icc in grid]
    if "sparse" in families:
        rows += [cover_sparse(runs, seed, share, people, lost) for (share, lost), people in product(SPARSE, PROFILES)]
    table = pd.DataFrame(rows)
    return table.assign(beware=table.apply(beware, axis=1)).round(dict.fromkeys(ROUNDED, 5))


def missed(table: pd.DataFrame) -> pd.DataFrame:
    """Cells that break the promise."""
    promised = (
        (table["statistic"] != "sparse") & (table["profiles"] >= PROMISED[0]) & (table["accuracy"] <= PROMISED[1])
    )
    return table[promised & ~table["coverage"].between(*BAR)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000, help="simulated runs a cell, at least 2000 for the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write the table to this file")
    parser.add_argument("--only", choices=FAMILIES, help="simulate one family, and keep the others' rows of the table")
    options = parser.parse_args()
    table = simulate(options.runs, options.seed, (options.only,) if options.only else FAMILIES)
    if options.only and options.table and options.table.exists():
        known = pd.read_csv(options.table, keep_default_na=False, na_values={"inside": [""]})
        parts = {name: (table if name == options.only else known[known["statistic"] == name]) for name in FAMILIES}
        table = pd.concat(parts.values(), ignore_index=True)
    if options.table:
        table.to_csv(options.table, index=False)
    shown = table.assign(coverage=(100 * table["coverage"]).round(1))
    print(
        shown.pivot(
            index=["statistic", "items", "accuracy", "forgotten"],
            columns=["correlation", "profiles"],
            values="coverage",
        )
    )
    broken = missed(table)
    print(f"{len(table)} cells, {len(broken)} of those promised miss {BAR[0]:.0%} to {BAR[1]:.0%}")
    return 1 if len(broken) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KitError as error:
        sys.exit(f"error: {error}")
