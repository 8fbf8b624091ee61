"""How often the 95 % interval of a method contains the truth: python benchmarks/replicates.py [--runs 2000]

The simulation uses the sets of the reference run and the measured variances. A person's logit of a right answer is the
sum of a mean, an effect of the replicate (its forget set, training, order and shots), an effect of the person, and an
effect of both, all normal. Each person answers ten questions in each replicate. A ``replicate sd`` of .1 is that of
vanilla and oracle, 1.2 about that of GA on image + text (in the reference run at 10 %, views pooled: 1.0 on Forget, 1.3
on Retain). Forget people are in one replicate, retain people in all but their own, celebrities and people of paths in
all. The kit promises 92 to 97 %; status 1 means that a cell misses this by more than twice its Monte-Carlo error.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from math import sqrt

import numpy as np
import pandas as pd
from scipy.special import expit

from mllmu_nb.statistics.intervals import interval, paired_difference

# name → replicates, people, and whether person p is in replicate r
SETS = {
    "forget, 5 x 10": (5, 50, lambda r, p: p // 10 == r),
    "forget, 10 x 10": (10, 100, lambda r, p: p // 10 == r),
    "forget, 5 x 5": (5, 25, lambda r, p: p // 5 == r),
    "forget, 3 x 15": (3, 45, lambda r, p: p // 15 == r),
    "retain, 5 of 10": (5, 100, lambda r, p: p // 10 != r),
    "retain, 10 of 10": (10, 100, lambda r, p: p // 10 != r),
    "celebrity, 5 x 40": (5, 40, lambda r, p: p >= 0),
    "path, 5 x 10": (5, 10, lambda r, p: p >= 0),
}
MEANS, SPREADS = (0.0, 1.5, 3.0), (0.1, 0.4, 0.7, 1.2)  # logits: a share of .5, about .8 and about .94
PERSON, BOTH, ITEMS, BEHIND = 0.7, 0.5, 10, 1.0
BAR = (0.92, 0.97)
TRUTH = np.random.default_rng(7).normal(size=200_000)


def share(mean: float, *sds: float) -> float:
    """The mean share of right answers, from a mean logit and the standard deviations of its effects."""
    return float(expit(mean + sqrt(sum(sd**2 for sd in sds)) * TRUTH).mean())


def answers(rng, chance: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Draw the share of right answers for each pair of replicate and person in ``there``."""
    return rng.binomial(ITEMS, expit(chance))[there] / ITEMS


def cell(name: str, mean: float, sd: float, runs: int, seed: int) -> list[dict]:
    """Return a row for a method's level, and one for its difference to a method ``BEHIND`` it, on the same people."""
    count, people, stands = SETS[name]
    r, p = np.meshgrid(np.arange(count), np.arange(people), indexing="ij")
    there = stands(r, p)
    rng, held = np.random.default_rng([seed, len(name), int(10 * mean), int(10 * sd), count]), np.zeros(2)
    levels = share(mean, sd, PERSON, BOTH), share(mean - BEHIND, sd, PERSON, BOTH)
    for _ in range(runs):
        alike = PERSON * rng.normal(size=people)
        one, other = (
            answers(rng, m + sd * rng.normal(size=(count, 1)) + alike + BOTH * rng.normal(size=there.shape), there)
            for m in (mean, mean - BEHIND)
        )
        level = interval(one, p[there], replicates=r[there])
        gap = paired_difference(one, other, p[there], replicates=r[there])
        held += level.low <= levels[0] <= level.high, gap.low <= levels[0] - levels[1] <= gap.high
    at = {"people": name, "share": round(levels[0], 2), "replicate sd": sd}
    return [at | {"of": of, "coverage": hits / runs} for of, hits in zip(("level", "difference"), held, strict=True)]


def simulate(runs: int, seed: int = 0) -> pd.DataFrame:
    """Return the table: one row per set, share, spread of replicates, and level or difference."""
    grid = product(SETS, MEANS, SPREADS)
    return pd.DataFrame([row for name, mean, sd in grid for row in cell(name, mean, sd, runs, seed)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated methods a cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = simulate(options.runs, options.seed)
    shown = table.assign(coverage=(100 * table["coverage"]).round(1))
    print(shown.pivot(index=["people", "of"], columns=["replicate sd", "share"], values="coverage").to_string())
    error = 2 * sqrt(0.95 * 0.05 / options.runs)
    missed = table[~table["coverage"].between(BAR[0] - error, BAR[1] + error)]
    inside = table["coverage"].between(*BAR).mean()
    print(f"{len(table)} cells, {inside:.0%} within {BAR[0]:.0%} to {BAR[1]:.0%}, {len(missed)} miss it")
    return 1 if len(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
