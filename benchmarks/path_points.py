"""How much straight lines between the points of a path bias what is kept: python benchmarks/path_points.py OUT.csv

GA and NPO go far between two of the ten points that a run stores (docs/scoring.md, "Along the path"). This trains them
again, measures them at up to three times as many points (at most every step), and reads what is kept at half closed
from all points and from those of the reference run alone. ``change``: all minus these, person by person, with 95 %
limits.
Vanilla is made if needed; the oracles are those of a sweep. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from mllmu_nb import pipeline, studies
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.evaluation import path as measuring
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import MODEL
from mllmu_nb.stages import Stage

TIMES, USUAL = 3, measuring.POINTS
STUDY = "path_points"


def measured(config: Config) -> Stage:
    """The stage that trains a run anew and measures it at ``TIMES`` as many points."""
    trained = pipeline.unlearned(config)
    return Stage(STUDY, {"unlearned": trained.key, "times": TIMES}, trained.make)


def table(points: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model and measure: what is kept at half closed read from the points of a usual run (``few``)
    and from ``all``, and the ``change`` with its limits. ``points`` are from ``by_person``, the oracles' among them."""
    last = points.groupby("run")["step"].transform("max").clip(lower=1)
    usual = points["step"] == (last * (points["step"] * USUAL / last).round() / USUAL).round()
    sides = [path.kept_by_person(some) for some in (points, points[usual])]
    fine, few = (side[(side["place"] == path.HALF) & side["what"].isin(studies.MEASURES)] for side in sides)
    key, ends = [*MODEL, "what"], ["value", "low", "high"]
    parts = {"few": path.kept(few), "all": path.kept(fine), "change": path.kept_difference(fine, few, MODEL)}
    frames = [part.set_index(key)[[*ends, "n_replicates"]].add_prefix(f"{name}_") for name, part in parts.items()]
    return pd.concat(frames, axis=1).reset_index()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the table, as CSV")
    parser.add_argument("--methods", nargs="+", default=["ga", "npo"])
    parser.add_argument("--replicates", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args(arguments)
    measuring.POINTS *= TIMES
    models = product(options.replicates, options.methods, path.TRAINED_VIEW)
    studies.make(STUDY, [Config(replicate=r, method=method, modality=kind) for r, method, kind in models], measured)
    runs = [run for run in studies.read(STUDY) if run["replicate"] in options.replicates]
    runs += studies.oracles(options.replicates)
    rows = table(pd.concat([path.by_person(run.path) for run in runs], ignore_index=True))
    rows.to_csv(options.out, index=False, float_format="%.4f")
    print(rows.to_string())


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
