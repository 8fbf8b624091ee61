"""What vanilla and the oracle know, task by task: python benchmarks/vanilla.py [--profiles FILE --people N]

Without options: of the shipped miniature. ``--profiles`` takes the fine-tuning sentences of people whom the base never
met (docs/data.md), from which the questions are derived; ``--exams 0`` teaches plain sentences alone. What is trained
is kept (MLLMU_NB_OUT), so a second call only prints. Right answers in per cent, with 95 % limits over people and, of
several ``--replicates``, over these as well.
"""

from __future__ import annotations

import argparse
import sys

from mllmu_nb import pipeline
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import Scores, read_run
from mllmu_nb.scoring.frames import VIEWS

ASKED = {
    ("classification", "letter", "accuracy"): "letter",
    ("classification", "likelihood", "accuracy"): "likelihood",
    ("generation", "", "exact"): "exact",
    ("cloze", "", "accuracy"): "cloze",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profiles", default="", help="people as JSON lines")
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--exams", type=float, help="share of the taught questions in the forms of evaluation")
    parser.add_argument("--replicates", type=int, nargs="+", default=[0])
    parser.add_argument("--base-model", default="llava")
    parser.add_argument("--methods", nargs="+", default=["vanilla", "oracle"], choices=("base", "vanilla", "oracle"))
    options = parser.parse_args()
    folders = []
    for replicate in options.replicates:
        known = {"profiles_file": options.profiles, "people": options.people, "base_model": options.base_model}
        config = Config(method=options.methods[0], exams=options.exams, replicate=replicate, **known)
        folders += pipeline.beside(config, *options.methods)
    cells = Scores.of([read_run(folder) for folder in folders]).cells
    cells = cells[(cells["against"] == "") & cells["view"].isin(VIEWS)]
    keys = cells[["task", "scoring", "metric"]].apply(tuple, axis=1)
    cells = cells.assign(asked=keys.map(ASKED)).dropna(subset=["asked", "value"])
    ends = (100 * cells[["value", "low", "high"]]).to_numpy(float)
    limits = [f"{value:.0f} [{low:.0f}, {high:.0f}]" for value, low, high in ends]
    table = cells.assign(limits=limits).pivot(index=["method", "set", "view"], columns="asked", values="limits")
    print(table[list(ASKED.values())].to_string())


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
