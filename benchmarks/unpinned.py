"""How often another CPU's bits leave the 95 % prediction interval of a replicate: python benchmarks/unpinned.py FOLDER

FOLDER has the results of one replicate that was trained with other bits: on a CPU of another maker than the reference's
(``make reproduce``; FOLDER is results/miniature), or with unpinned bits on a CPU with AVX-512
(``MLLMU_NB_UNPINNED=1 make reproduce``). Each score is compared with those of the other replicates of the reference in
the same cell (method, modality, set, view, metric): a new replicate should lie in mean ± t s √(1 + 1/n) in 95 % of the
cells. If it does in fewer than 93 %, the exit status is 1. Cells that are the same in all replicates are counted and
left out. For shares of right answers, the table also shows the standard deviation of rounding alone (two readings of
one replicate differ by √2 of it) and that of replicates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from mllmu_nb import paths
from mllmu_nb.reporting.runs import Scores

CELL = ["method", "variant", "modality", "set", "task", "view", "scoring", "metric"]
PROMISED = 0.93


def compared(folder: Path, reference: Scores) -> tuple[int, pd.DataFrame, dict[str, pd.Series], int]:
    """Return the replicate of ``folder``, its cells beside those of the ``reference``, which of both lie inside the
    prediction interval, and how many further cells are the same in all replicates."""
    [(group, mine)] = Scores.read(folder).groups
    known, other = reference.of_group(*group).run_scores(), mine.run_scores()
    [own] = other["replicate"].unique()
    same, others = known[known["replicate"] == own], known[known["replicate"] != own]

    def values(frame: pd.DataFrame) -> pd.Series:
        return pd.to_numeric(frame.set_index(CELL)["value"], errors="coerce")

    spread = values(others).groupby(CELL).agg(["mean", "std", "count"])
    rows = spread.join(values(other).rename("other bits")).join(values(same).rename("reference")).dropna()
    constant = rows["std"] < 1e-9
    rows = rows[~constant]
    reach = t.ppf(0.975, rows["count"] - 1) * rows["std"] * np.sqrt(1 + 1 / rows["count"])
    inside = {name: (rows[name] - rows["mean"]).abs() <= reach for name in ("reference", "other bits")}
    return own, rows, inside, int(constant.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    own, rows, inside, constant = compared(parser.parse_args().folder, Scores.read(paths.reference()))
    table = pd.DataFrame(inside).groupby("method").mean().mul(100).round(1)
    shares = rows[rows.index.get_level_values("metric") == "accuracy"]
    rounding = (shares["other bits"] - shares["reference"]) ** 2 / 2
    squares = {"sd of rounding": rounding, "of replicates": shares["std"] ** 2}
    spread = pd.DataFrame(squares).groupby("method").mean().pow(0.5).mul(100).round(1)
    print(table.assign(cells=rows.groupby("method").size()).join(spread).to_string())
    print(f"moved at all: {(rows['reference'] != rows['other bits']).mean():.0%} of {len(rows)} cells", end="; ")
    print(f"{constant} more are the same in every replicate")
    for name, held in inside.items():
        print(f"{name}, replicate {own}: {100 * held.mean():.1f} % inside the prediction interval of the others")
    return int(inside["other bits"].mean() < PROMISED)


if __name__ == "__main__":
    sys.exit(main())
