"""How much time an evaluation saves by keeping memory for reuse instead of giving it back to the system.

    python benchmarks/evaluation.py [--limit PEOPLE] [--rounds N]

Each measurement asks the shipped base about ``--limit`` people of each set, in a process of its own. The arms take
turns. The ratio divides the medians over the rounds. The last column says whether all rows are the same.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from statistics import median
from unittest import mock

import pandas as pd

from mllmu_nb import inputs, pipeline, provenance
from mllmu_nb.config import Config
from mllmu_nb.evaluation.ask import ask
from mllmu_nb.models import load

ARMS = ("as it is", "memory given back")


def measured(arm: str, limit: int) -> tuple[float, pd.DataFrame]:
    """Return the seconds of the evaluation, without loading, and its rows."""
    config = Config(method="base")
    with mock.patch.object(load, "_keep_memory") if arm == "memory given back" else nullcontext():
        model, processor = pipeline.model(config)
    known = inputs.population(config)
    began = time.perf_counter()
    rows = ask(model, processor, known, limit=limit, progress=False)
    return time.perf_counter() - began, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds, rows = defaultdict(list), {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for _ in range(options.rounds):
            for arm in ARMS:
                spent, rows[arm] = pool.submit(measured, arm, options.limit).result()
                seconds[arm].append(spent)
    machine = provenance.machine()
    print(f"{machine['cpu']}, {machine['capability']}, {os.cpu_count()} cores, one thread; {len(rows[ARMS[0]])} rows")
    print("| arm | times as long | rows |\n|---|---:|---|")
    for arm in ARMS:
        same = "the same" if rows[arm].equals(rows[ARMS[0]]) else "others"
        print(f"| {arm} | {median(seconds[arm]) / median(seconds[ARMS[0]]):.2f} | {same} |")


if __name__ == "__main__":
    main()
