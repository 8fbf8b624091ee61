"""``python -m mllmu_nb study``: what each piece of the released code changes, one at a time; notebook 11 shows it.

One vanilla model a replicate, then one short unlearning a setting; what is finished is not done again.
"""

from __future__ import annotations

import argparse

from mllmu_nb import paths
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

SUMMARY = "measure on the miniature what each piece of the released code changes"
EXAMPLES = ("study differences", "study differences --replicates 0 1 2")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", default="differences", choices=["differences"], help="the one there is")
    parser.add_argument("--replicates", type=int, nargs="+", metavar="R", default=[0, 1], help="to be pooled (0 1)")


def main(options: argparse.Namespace) -> int:
    """Makes what is missing, prints the main table and writes it beside the runs. KitError for what cannot be."""
    from mllmu_nb.studies import differences

    if min(options.replicates) < 0:
        raise KitError(f"--replicates are numbers from 0 on, not {min(options.replicates)}")
    config = Config()
    differences.make(differences.grid(config, options.replicates))
    table, folder = differences.table(differences.read()), paths.study(paths.results(config.scale), differences.NAME)
    table.to_csv(folder / "differences.csv", index=False)
    print(differences.printed(table).to_string())
    print(f"runs and differences.csv: {folder}")
    return 0
