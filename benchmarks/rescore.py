"""Measures how long runs take to be scored again from their stored answers: without a model and without stored scores.

    python benchmarks/rescore.py [RUNS]

Takes the first RUNS (60) of the committed reference run, all of one base model and forget ratio. Scoring reads the
answers and makes every score with its interval, the verdicts on collapse and the points of the paths: all that tables
and figures are made from. Prints the processor seconds, also per run, and the processor. Time on the clock is longer
if the machine is busy.
"""

import sys
import time

from mllmu_nb import paths, provenance
from mllmu_nb.reporting.runs import Scores, read_runs

FIRST = {"base_model": "llava", "forget_ratio": 10}


def main(count: int) -> None:
    runs = [run for run in read_runs(paths.reference()) if all(run[name] == value for name, value in FIRST.items())]
    # whole replicates, so that methods are compared with their own vanilla and oracle
    runs = sorted(runs, key=lambda run: (run["replicate"], run.id))[:count]
    began, clock = time.process_time(), time.perf_counter()
    scores = Scores.of(runs)
    spent, passed = time.process_time() - began, time.perf_counter() - clock
    print(
        f"{len(runs)} runs, {len(scores.items):,} answers, {len(scores.cells):,} scores; {provenance.machine()['cpu']}"
    )
    print(f"{spent:.0f} s of the processor, {spent / len(runs):.2f} s a run; {passed:.0f} s on the clock")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
