"""Measures the seconds until a sweep's notebook has imported and knows whether its run exists: forked from a process
that has imported (as the sweep does), against started from nothing (as papermill does by hand), in turns.

    python benchmarks/starting.py [REPETITIONS]

The first fork is not counted, because the process that imports is started only once per sweep. Prints each pair, the
median ratio and its spread, and what a sweep of twelve notebooks saves.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from mllmu_nb.commands import warm

IMPORTS = """
from mllmu_nb import pipeline
from mllmu_nb.config import Config
from mllmu_nb.models import adapters, load
from mllmu_nb.reporting import figures, show
from mllmu_nb.training import train
from transformers import LlavaForConditionalGeneration
"""
FINISHED = "pipeline.finished(Config(people=20, celebrities=8))"


def seconds(notebook: Path, forked: bool) -> float:
    warm.can_fork = lambda: forked
    began = time.perf_counter()
    process = warm.start(notebook, notebook.with_suffix(".out.ipynb"), notebook.with_suffix(".log"), {}, 1)
    process.join()
    assert process.exitcode == 0, notebook.with_suffix(".log").read_text()
    return time.perf_counter() - began


def main(repetitions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLLMU_NB_OUT"] = folder
        book = new_notebook(cells=[new_code_cell(IMPORTS), new_code_cell(FINISHED)])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = Path(folder) / "start.ipynb"
        nbformat.write(book, notebook)
        once = seconds(notebook, True)
        pairs = [(seconds(notebook, False), seconds(notebook, True)) for _ in range(repetitions)]
    for cold, forked in pairs:
        print(f"started {cold:6.1f} s   forked {forked:6.1f} s   {cold / forked:5.1f} ×")
    ratios = [cold / forked for cold, forked in pairs]
    print(f"median {statistics.median(ratios):.1f} ×, from {min(ratios):.1f} to {max(ratios):.1f}")
    saved = 12 * statistics.median(cold - forked for cold, forked in pairs) - once
    print(f"the first one {once:.1f} s; twelve notebooks save {saved:.0f} s, less where two run at once")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
