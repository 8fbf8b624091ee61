"""``mllmu-nb verify [CONFIG]``: are these the scores that others got? ``docs/scoring.md`` ("Comparison with the
reference") explains the verdicts."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb import inputs, paths
from mllmu_nb.commands import sweep
from mllmu_nb.errors import KitError
from mllmu_nb.reporting import published
from mllmu_nb.reporting.runs import Run, items_of, read_run, read_runs, which_results
from mllmu_nb.reporting.sheet import write_csv
from mllmu_nb.scoring.frames import CELL
from mllmu_nb.scoring.score import run_scores

EXAMPLES = ("verify", "verify configs/miniature.yaml")
SAME, WITHIN, OFF, MISSING = "same", "within interval", "off", "missing"
MAKER = "CPU maker"
ROUNDING = 1e-9  # error of sums in another order
NUMBERS = ["value", "low", "high"]
REFERENCE = [f"{name}_reference" for name in NUMBERS]
KEYS = ["run", *CELL, "metric"]


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "configuration file whose runs are compared (default: your runs at the miniature's scale)"
    parser.add_argument("config", type=Path, nargs="?", help=about)
    about = "a results folder, in place of the reference run that comes with the project"
    parser.add_argument("--against", type=Path, metavar="FOLDER", help=about)
    about = "compare only this run, for example one made by evaluate"
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=about)


def main(options: argparse.Namespace) -> int:
    """Print the verdicts. Returns 0 if no cell is off or missing and every run is there, else 1. Raises KitError if
    there is nothing to compare or a file of a run is damaged."""
    if options.run and options.config:
        raise KitError("--run compares one finished run: give no configuration with it")
    reference = options.against or paths.reference()
    if options.against and not paths.runs(reference).is_dir():  # refused before anything is computed
        raise KitError(f"there are no runs in {reference}: give a results folder with --against")
    not_made: list[str] = []
    if options.run:
        runs = [read_run(options.run)]
    elif options.config:
        folders = [inputs.run_folder(one) for one in sweep.cells(sweep.read(options.config))]
        runs = [read_run(folder) for folder in folders if folder.is_dir()]
        not_made = [folder.name for folder in folders if not folder.is_dir()]
    else:  # the user's own runs, else those of the reference
        runs = read_runs(which_results("miniature")[0])
    if not runs:
        raise KitError("there is no run to compare: make it with python -m mllmu_nb sweep")
    scale = runs[0].record["scale"]
    if scale == "paper" and not options.against:
        for run in runs:
            if run.record["notes"].get("source") != "official":
                raise KitError(f"{run.id} is not about the published people, so published figures say nothing about it")
        cells = compare_published(run_scores(items_of(runs)))
        shown = cells[cells["verdict"] != ""]
    else:
        folders = [paths.runs(reference) / run.folder.name for run in runs]
        if not (reference_runs := [read_run(folder) for folder in folders if folder.is_dir()]):
            raise KitError(f"{reference} has none of these runs: a run is found by its parameters")
        cells = compare(run_scores(items_of(runs)), run_scores(items_of(reference_runs)))
        print_differences(runs, reference_runs)
        print(cells.groupby(["run", "verdict"]).size().unstack(fill_value=0).rename(columns={"": "new"}).to_string())
        shown = cells[cells["verdict"].isin([OFF, MISSING])]
    if len(shown):
        columns = ["verdict", *KEYS, *NUMBERS, *REFERENCE, *(["source"] if "source" in shown else [])]
        print(shown[columns].to_string(index=False, float_format="{:.3f}".format))
    every_cell = paths.writable(paths.cache()) / f"verify-{scale}.csv"
    write_csv(cells, every_cell)
    counts = Counter(verdict for verdict in cells["verdict"] if verdict)
    itself = runs[0].folder.parent == paths.runs(paths.reference())
    whose = "cells of the committed reference itself, since there is no run of yours" if itself else "cells"
    print(f"{counts.total()} {whose}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())} ({every_cell})")
    if not_made:
        print(f"not made here: {', '.join(not_made)} (make them with python -m mllmu_nb sweep {options.config})")
    return 1 if counts[OFF] or counts[MISSING] or not_made else 0


# -- against a run ----------------------------------------------------------------------------------------------


def compare(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The cells of ``scores`` with those of the reference, and a verdict for each."""
    reference_cells = reference[[*KEYS, *NUMBERS]]
    cells = scores.merge(reference_cells, "outer", KEYS, suffixes=("", "_reference"), validate="one_to_one")
    return cells.assign(verdict=verdicts(cells))


def verdicts(cells: pd.DataFrame, rounding: Any = 0.0) -> np.ndarray:
    """A verdict for each row, from value, low and high of both sides."""
    value, low, high, other, other_low, other_high = (cells[name] for name in (*NUMBERS, *REFERENCE))
    alike = (value - other).abs() <= rounding + ROUNDING
    within = other.between(low, high) | value.between(other_low, other_high)
    return np.select([other.isna(), value.isna(), alike, within], ["", MISSING, SAME, WITHIN], OFF)


def print_differences(runs: Sequence[Run], reference_runs: Sequence[Run]) -> None:
    """Print how the runs' records differ from the reference's; most often this is the reason why a cell differs."""
    reference = {run.folder.name: made_with(run.record) for run in reference_runs}
    lines: Counter[str] = Counter()
    for run in runs:
        theirs = reference.get(run.folder.name, {})
        for name, value in made_with(run.record).items():
            if theirs.get(name, value) != value:
                lines[f"{name} {value!r} (reference: {theirs[name]!r})"] += 1
    for line, count in lines.items():
        print(f"made with {line}" + (f" in {count} of {len(runs)} runs" if count < len(runs) else ""))
    if any(line.startswith(MAKER) for line in lines):
        print("CPUs of two makers have other bits: expect scores as of another replicate (docs/architecture.md)")


def made_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a run's provenance that can change a score."""
    same = {name: record.get(name) for name in ("device", "data_hash", "base_hash")}
    same[MAKER] = record.get("cpu", "").partition(" ")[0]
    return {**record.get("versions", {}), **record.get("parameters", {}), **record.get("bits", {}), **same}


# -- against published figures ----------------------------------------------------------------------------------


def compare_published(scores: pd.DataFrame) -> pd.DataFrame:
    """The cells of ``scores``, each with the published figure that agrees best (``value_reference``), its ``source``
    and a ``verdict``; empty if none was published. Raises KitError if no cell has a published figure."""
    printed = pd.concat([pd.DataFrame([published.ANCHOR]), published.cells(published.load())], ignore_index=True)
    keys = [name for name in printed if name not in ("value", "rounding", "source")]
    cells = scores.assign(cell=range(len(scores))).merge(printed, "left", keys, suffixes=("", "_reference"))
    other = cells["value_reference"]
    if other.isna().all():
        raise KitError("no figure was published for these runs: figures are known for LLaVA-1.5-7B at 5 and 10 %")
    cells = cells.assign(low_reference=other, high_reference=other, away=(other - cells["value"]).abs())
    cells = cells.assign(verdict=verdicts(cells, cells["rounding"])).fillna({"source": ""})
    order = cells.assign(rank=cells["verdict"].map([SAME, WITHIN, OFF, ""].index)).sort_values(["cell", "rank", "away"])
    return order.drop_duplicates("cell")[[*scores, *REFERENCE, "source", "verdict"]]
