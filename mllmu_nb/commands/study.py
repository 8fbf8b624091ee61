"""``mllmu-nb study``: an experiment on the miniature, one vanilla model per replicate and then one short unlearning per
setting. :mod:`mllmu_nb.studies` has the experiments; notebook 11 shows them."""

import argparse

from mllmu_nb import paths
from mllmu_nb.errors import KitError

EXAMPLES = ("study differences", "study differences --replicates 0 1 2")
STUDY = "differences"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", default=STUDY, choices=[STUDY], help=f"default: {STUDY}")
    about = "replicates whose results are pooled (default: 0 1)"
    parser.add_argument("--replicates", type=int, nargs="+", metavar="R", default=[0, 1], help=about)


def main(options: argparse.Namespace) -> int:
    """Make missing runs, print the table, write it beside the runs. Raises KitError for a negative replicate."""
    from mllmu_nb import studies
    from mllmu_nb.reporting.sheet import write_sheets

    if min(options.replicates) < 0:
        raise KitError(f"--replicates are numbers from 0 on, not {min(options.replicates)}")
    folder = paths.study(options.study)
    studies.make(options.study, studies.grid(options.replicates))
    table = studies.table(studies.read(options.study))
    write_sheets([table], folder / options.study, "the runs beside it")
    print(f"{table.markdown()}\nruns and {options.study}.csv: {folder}")
    return 0
