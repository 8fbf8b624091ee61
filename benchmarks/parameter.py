"""What a parameter is worth to vanilla: python benchmarks/parameter.py OUT.csv NAME VALUE [--replicates 0 1 2 3 4]

Makes vanilla with its default and with another value, asks both the same questions, and compares the answers question
by question. Prints the shares of right answers and the difference (default minus other) with 95 % limits over
replicates crossed with people, for each task in which something differs.

- ``shots.csv``: ``shots 0``, the same model without the five worked examples of every run, which should cost at most 5
  points. Only letters and blanks have worked examples.
- ``pairs.csv``: ``train_modality multimodal``, vanilla taught on image + text pairs alone, as in the released code. By
  default it also learns every question by name, without the portrait.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import yaml

from mllmu_nb import pipeline
from mllmu_nb.config import Config
from mllmu_nb.data.schema import SETS, VIEWS
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import items_of, read_run
from mllmu_nb.scoring.frames import PAIRED_ON, of_metric, persons
from mllmu_nb.statistics.intervals import paired_difference

TASKS = {  # task, scoring and the column of what is right
    "letter": ("classification", "letter", "correct"),
    "likelihood": ("classification", "likelihood", "correct"),
    "free answer": ("generation", "", "exact"),
    "blank": ("cloze", "", "correct"),
}
SAME = [name for name in PAIRED_ON if name != "taught"]  # the parameter may change what vanilla was taught


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the table, as CSV")
    parser.add_argument("name", help="a parameter of the run")
    parser.add_argument("value", type=yaml.safe_load, help="the other value")
    parser.add_argument("--replicates", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options, sides = parser.parse_args(), []
    if options.name in (*SAME, "seed", "data_source", "profiles_file"):
        parser.error(f"with another {options.name} other questions are asked: nothing can be compared")
    for given in ({}, {options.name: options.value}):
        configs = [Config(method="vanilla", replicate=replicate, **given) for replicate in options.replicates]
        sides.append(items_of([read_run(pipeline.run(config)) for config in configs], []))
    rows = []
    for (name, (task, scoring, right)), set_name, view in product(TASKS.items(), SETS, VIEWS):
        asked = [of_metric(side, task, scoring) for side in sides]
        asked = [side[(side["set"] == set_name) & (side["view"] == view)] for side in asked]
        both = asked[0].merge(asked[1][[*SAME, right]], on=SAME, suffixes=("", "_other"))
        mine, other = both[right], both[f"{right}_other"]
        change = paired_difference(mine, other, persons(both), replicates=both["replicate"])
        row = {"task": name, "set": set_name, "view": view, "default": mine.mean(), "other": other.mean()}
        rows.append(row | vars(change))
    table = pd.DataFrame(rows)
    table = table[table.groupby("task")["value"].transform("any")]
    table.to_csv(options.out, index=False, float_format="%.4f")
    print(table.round(3).to_string())


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
