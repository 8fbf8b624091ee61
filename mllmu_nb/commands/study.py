"""``python -m mllmu_nb study NAME``: make the many small runs of a study and print what came out; without NAME, a list.

One vanilla model, then one short unlearning a setting; what is finished is not done again. The notebook of a study
(README) shows it.
"""

from __future__ import annotations

import argparse

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

SUMMARY = "measure on the miniature what no single run can show"
EXAMPLES = ("study", "study modality --draws 0 1 2")
JOBS = 2  # a thread each gets more out of two cores than one model after the other on both


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", metavar="NAME", help="without it, the studies there are")
    parser.add_argument("--draws", type=int, nargs="+", metavar="D", help="forget draws to be pooled")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=f"runs at a time ({JOBS})")


def main(options: argparse.Namespace) -> int:
    """Makes what is missing, prints the main table and writes it beside the scores. KitError for what cannot be."""
    from mllmu_nb.studies import base  # with all that it draws with: not for the other commands

    if not options.study:
        for study in base.studies():
            print(f"{study.name}: {study.question}")
        return 0
    if options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    if options.draws and min(options.draws) < 0:
        raise KitError(f"--draws are numbers of forget sets from 0 on, not {min(options.draws)}")
    study = base.get(options.study)
    folder = base.make(study, Config(), options.draws or (), options.jobs)
    table = study.table(base.read(study.name))
    table.to_csv(folder / f"{study.name}.csv", index=False)
    print(study.printed(table).to_string())
    print(f"scores and {study.name}.csv: {folder}")
    return 0
