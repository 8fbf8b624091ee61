"""``python -m mllmu_nb study``: what each piece of the released code changes, one at a time; notebook 11 shows it.

It makes one vanilla model per replicate, then one short unlearning per setting; what is finished is not done again.
"""

import argparse

from mllmu_nb import paths
from mllmu_nb.errors import KitError

SUMMARY = "measure on the miniature what each difference of the released code changes"
EXAMPLES = ("study differences", "study differences --replicates 0 1 2")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", default="differences", choices=["differences"], help="the only study")
    about = "replicates whose results are pooled (default: 0 1)"
    parser.add_argument("--replicates", type=int, nargs="+", metavar="R", default=[0, 1], help=about)


def main(options: argparse.Namespace) -> int:
    """Make missing runs, print the table, write it beside the runs. Raises KitError for a negative replicate."""
    from mllmu_nb.reporting.sheet import write_sheets
    from mllmu_nb.studies import released_code

    if min(options.replicates) < 0:
        raise KitError(f"--replicates are numbers from 0 on, not {min(options.replicates)}")
    released_code.make(released_code.grid(options.replicates))
    table, folder = released_code.change_table(released_code.read()), paths.study("differences")
    write_sheets([table], folder / "differences", "the runs beside it")
    print(f"{table.markdown()}\nruns and differences.csv: {folder}")
    return 0
