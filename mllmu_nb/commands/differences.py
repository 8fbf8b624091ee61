"""``python -m mllmu_nb differences``: measure what each difference between the released code and the papers changes.

Some twenty short unlearnings a forget draw on one vanilla model, and vanilla asked after the shots of twenty draws:
minutes on one core. Notebook 11 shows what came out.
"""

from __future__ import annotations

import argparse

from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

SUMMARY = "what each difference between the released code and the papers changes, on the miniature"
DRAWS = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=DRAWS, metavar="N", help=f"forget draws to be pooled ({DRAWS})")


def main(options: argparse.Namespace) -> int:
    """Measures, or finds what was measured before, and prints the main table. KitError when there are no draws."""
    if options.draws < 1:
        raise KitError(f"--draws must be at least 1, not {options.draws}")
    from mllmu_nb import differences
    from mllmu_nb.reporting import differences as told

    folder = differences.measure(Config(), range(options.draws))
    found = told.changes(told.read(folder)[0])
    found.to_csv(folder / "differences.csv", index=False)
    print(told.printed(found).to_string())
    print(f"answers and differences: {folder}")
    return 0
