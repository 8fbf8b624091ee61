"""``python -m mllmu_nb study NAME``: train the many small models of a study, ask them, and print what came out.

One vanilla model, then one short unlearning a configuration; what is finished is not done again. The notebook of a
study (README) shows it.
"""

from __future__ import annotations

import argparse
import importlib

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

SUMMARY = "measure on the miniature what no single run can show"
JOBS = 2  # a thread each gets more out of two cores than one model after the other on both
STUDIES = {
    "differences": "what each difference between the released code and the papers changes",
    "cliff": "learning rate by length: how much is forgotten, how much kept",
    "modality": "the paper's headline claim, at equal retain",
    "variance": "how much forget set, training, unlearning order and shots each make of a score's spread",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    studies = parser.add_subparsers(dest="study", required=True)
    for name, summary in STUDIES.items():
        one = studies.add_parser(name, help=summary, description=summary)
        one.add_argument("--draws", type=int, nargs="+", metavar="D", help="forget draws to be pooled")
        one.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=f"models at a time ({JOBS})")


def main(options: argparse.Namespace) -> int:
    """Measures what was not measured before, and prints the main table. KitError for what cannot be."""
    if options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    if options.draws and min(options.draws) < 0:
        raise KitError(f"--draws are numbers of forget sets from 0 on, not {min(options.draws)}")
    study = importlib.import_module(f"mllmu_nb.studies.{options.study}")
    report = importlib.import_module(f"mllmu_nb.reporting.{options.study}")
    folder = study.measure(Config(), options.draws or study.DRAWS, jobs=options.jobs)
    table = report.measured(folder)
    table.to_csv(folder / f"{options.study}.csv", index=False)
    print(report.printed(table).to_string())
    print(f"answers and {options.study}.csv: {folder}")
    return 0
