"""``python -m mllmu_nb study``: what each piece of the released code changes, one at a time; notebook 11 shows it.

One vanilla model a replicate, then one short unlearning a setting; what is finished is not done again.
"""

from __future__ import annotations

import argparse

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

SUMMARY = "measure on the miniature what each piece of the released code changes"
EXAMPLES = ("study differences", "study differences --replicates 0 1 2")
JOBS = 2  # a thread each gets more out of two cores than one model after the other on both


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", default="differences", choices=["differences"], help="the one there is")
    parser.add_argument("--replicates", type=int, nargs="+", metavar="R", default=[0, 1], help="to be pooled (0 1)")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=f"runs at a time ({JOBS})")


def main(options: argparse.Namespace) -> int:
    """Makes what is missing, prints the main table and writes it beside the scores. KitError for what cannot be."""
    from mllmu_nb.studies import base, differences  # with all that it draws with: not for the other commands

    if options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    folder = base.make(differences.grid(Config(), options.replicates), options.jobs)
    table = differences.table(base.read())
    table.to_csv(folder / f"{base.NAME}.csv", index=False)
    print(differences.printed(table).to_string())
    print(f"scores and {base.NAME}.csv: {folder}")
    return 0
