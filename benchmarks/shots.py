"""What worked examples cost vanilla: python benchmarks/shots.py OUT.csv [--replicates 0 1 2 3 4]

Asks the same vanilla model with the five worked examples of every run and without, and compares the answers question by
question. The goal: they cost at most 5 points. Prints the shares of right answers and the difference (with minus
without) with 95 % limits over replicates crossed with people. Only letters and blanks have worked examples.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import pandas as pd

from mllmu_nb import pipeline
from mllmu_nb.config import Config
from mllmu_nb.data.schema import SETS, VIEWS
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import items_of, read_run
from mllmu_nb.scoring.frames import PAIRED_ON, of_metric, persons
from mllmu_nb.statistics.intervals import paired_difference

TASKS = {"letter": ("classification", "letter"), "blank": ("cloze", "")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the table, as CSV")
    parser.add_argument("--replicates", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options, sides = parser.parse_args(), []
    for shots in (5, 0):
        configs = [Config(method="vanilla", replicate=replicate, shots=shots) for replicate in options.replicates]
        sides.append(items_of([read_run(pipeline.run(config)) for config in configs], []))
    rows = []
    for (task, key), set_name, view in product(TASKS.items(), SETS, VIEWS):
        asked = [of_metric(side, *key) for side in sides]
        asked = [side[(side["set"] == set_name) & (side["view"] == view)] for side in asked]
        both = asked[0].merge(asked[1][[*PAIRED_ON, "correct"]], on=PAIRED_ON, suffixes=("", "_without"))
        change = paired_difference(
            both["correct"], both["correct_without"], persons(both), replicates=both["replicate"]
        )
        row = {"task": task, "set": set_name, "view": view}
        row |= {"with": both["correct"].mean(), "without": both["correct_without"].mean()} | vars(change)
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(options.out, index=False, float_format="%.4f")
    print(table.round(3).to_string())


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
