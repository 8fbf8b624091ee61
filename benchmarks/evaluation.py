"""What keeping memory spares an evaluation: a run's questions as they are asked, and with memory given back.

    python benchmarks/evaluation.py [--limit PEOPLE] [--rounds N]

Each measurement asks the shipped base about so many people of each set, in a process of its own, the arms taking turns;
the ratio is that of the medians over the rounds. The last column says whether every row came out the same.
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
import torch

from mllmu_nb import run
from mllmu_nb.config import Config
from mllmu_nb.evaluation import evaluate
from mllmu_nb.models import load

ARMS = ("as it is", "memory given back")


def measured(arm: str, limit: int) -> tuple[float, pd.DataFrame]:
    """Seconds that the evaluation takes, loading left out, and its rows."""
    with mock.patch.object(load, "_keep_memory") if arm == "memory given back" else nullcontext():
        model, processor = load.load_base(Config())
    known = run.population(Config())
    began = time.perf_counter()
    rows = evaluate(model, processor, known, limit=limit, progress=False)
    return time.perf_counter() - began, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    spent, rows = defaultdict(list), {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for _ in range(asked.rounds):
            for arm in ARMS:
                seconds, rows[arm] = pool.submit(measured, arm, asked.limit).result()
                spent[arm].append(seconds)
    print(f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, one thread; {len(rows[ARMS[0]])} rows")
    print("| arm | times as long | rows |\n|---|---:|---|")
    for arm in ARMS:
        same = "the same" if rows[arm].equals(rows[ARMS[0]]) else "others"
        print(f"| {arm} | {median(spent[arm]) / median(spent[ARMS[0]]):.2f} | {same} |")


if __name__ == "__main__":
    main()
