"""``python -m mllmu_nb verify [CONFIG]``: are these the scores that others got?

Every cell of the scores, computed from the stored answers, gets a verdict:

- ``same``: the value is the reference's, to rounding.
- ``within interval``: the reference's value lies in the new 95 % interval, or the new value in the reference's. The
  intervals allow for other people and questions, while a rerun asks the same ones: this is the weaker word.
- ``off``: neither. ``missing``: the reference has the cell and the run lacks it. Empty: the reference lacks it.

The reference is the run that comes with the project, or the folder named by ``--against``. At paper scale it is what
others printed (:mod:`mllmu_nb.reporting.published`), first the anchor (the released weights' score), which is ``same``
within 0.005 and else ``off``. Printed figures have no interval and sources differ in level, so a cell gets the best
verdict of its sources.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb import paths, pipeline, stages
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.scoring.frames import CELL

SUMMARY = "compare scores, cell by cell, with the reference run or with published figures"
EXAMPLES = ("verify", "verify configs/miniature.yaml --rerun")
SAME, WITHIN, OFF, MISSING = "same", "within interval", "off", "missing"
ROUNDING = 1e-9  # of a mean that was written to a file and read back
NUMBERS = ["value", "low", "high"]
REFERENCE = [f"{name}_reference" for name in NUMBERS]
KEYS = ["run", *CELL, "metric"]


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "configuration file whose runs are compared (default: your runs at the miniature's scale)"
    parser.add_argument("config", type=Path, nargs="?", help=about)
    about = "a folder with scores.csv, in place of the reference that comes with the project"
    parser.add_argument("--against", type=Path, metavar="FOLDER", help=about)
    about = "the one run to compare, such as evaluate leaves, in place of all"
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=about)
    about = "make the runs of the configuration anew, from nothing"
    parser.add_argument("--rerun", action="store_true", help=about)


def main(options: argparse.Namespace) -> int:
    """Prints the verdicts. 0 when no cell is off or missing and no file is damaged, else 1; KitError where there is
    nothing to compare."""
    from mllmu_nb.reporting.runs import items_of, read_run
    from mllmu_nb.reporting.tables import write_csv
    from mllmu_nb.scoring.score import run_scores

    if options.rerun and not options.config:
        raise KitError("--rerun needs the configuration file of what to make anew, such as configs/miniature.yaml")
    if options.run and (options.config or options.rerun):
        raise KitError("--run names one finished run: give it without a configuration and without --rerun")
    configs, cache = sweep.cells(sweep.read(options.config)) if options.config else [], paths.cache()
    if options.rerun:
        os.environ[paths.OUT] = str(cache / "rerun")
        shutil.rmtree(cache / "rerun", ignore_errors=True)
        if sweep.main(argparse.Namespace(config=options.config, ratios=None, bases=None, jobs=None, shard=None)):
            return 1
    damaged = {folder: damages(folder) for folder in ([options.run] if options.run else chosen(configs))}
    for problem in (problem for problems in damaged.values() for problem in problems):
        print(problem)
    runs = [read_run(folder) for folder, problems in damaged.items() if not problems]
    if not runs:
        raise KitError("there is no whole run to compare: make it again with python -m mllmu_nb sweep")
    scale = runs[0].record["scale"]
    if scale == "paper" and not options.against:
        cells = compare_published(run_scores(items_of(published_people(runs))))
        shown = cells[cells["published"] != ""]
    else:
        reference = options.against or paths.reference()
        theirs = read_scores(reference)  # first: a wrong folder is named before anything is computed
        cells = compare(run_scores(items_of(runs)), theirs)
        print_differences(runs, reference)
        print(cells.groupby(["run", "verdict"]).size().unstack(fill_value=0).rename(columns={"": "new"}).to_string())
        shown = cells[cells["verdict"].isin([OFF, MISSING])]
    if len(shown):
        columns = ["verdict", *KEYS, *NUMBERS, *(name for name in (*REFERENCE, "published", "source") if name in shown)]
        print(shown[columns].to_string(index=False, float_format="{:.3f}".format))
    every_cell = paths.writable(cache) / f"verify-{scale}.csv"
    write_csv(cells, every_cell)
    counts = Counter(verdict for verdict in cells["verdict"] if verdict)
    itself = runs[0].folder.parent == paths.runs(paths.reference())
    whose = "cells of the committed reference itself, since there is no run of yours" if itself else "cells"
    print(f"{counts.total()} {whose}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())} ({every_cell})")
    return 1 if any(damaged.values()) or counts[OFF] or counts[MISSING] else 0


def chosen(configs: Sequence[Config]) -> list[Path]:
    """Folders of one's own runs: those of ``configs``, else all of the miniature's, else those of the reference."""
    folders = [pipeline.run_folder(config) for config in configs]
    for folder in folders:
        if not folder.is_dir():
            print(f"not made here: {folder.name}")
    if configs:
        return [folder for folder in folders if folder.is_dir()]
    own, reference = (sorted(paths.runs(place).glob("*/")) for place in (paths.results("miniature"), paths.reference()))
    if not own:
        print(f"no run in {paths.results('miniature')}")
    return own or reference


def damages(folder: Path) -> list[str]:
    """What is wrong with the files of a run, by its record; a line each."""
    try:
        written, now = stages.read_json(folder / stages.RECORD)["files"], stages.digests(folder)
        changed = [name for name in written if now.get(name) != written[name]]
    except (KitError, KeyError, TypeError):
        return [f"{folder.name}: {stages.RECORD} is missing or altered"]
    return [f"{folder.name}: {name} is {'altered' if name in now else 'missing'}" for name in changed]


# -- against a run ----------------------------------------------------------------------------------------------


def read_scores(folder: Path) -> pd.DataFrame:
    """scores.csv of ``folder``."""
    try:
        scores = pd.read_csv(folder / "scores.csv", keep_default_na=False)
        return scores[KEYS].join(scores[NUMBERS].apply(pd.to_numeric))
    except OSError:
        raise KitError(f"there is no scores.csv in {folder}: name a folder that holds one by --against") from None
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise KitError(f"scores.csv of the reference in {folder} cannot be read: {reason}") from None


def compare(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The cells of the runs in ``scores`` beside the reference and a verdict. Raises KitError when the reference
    has none of these runs, or a cell twice."""
    reference = reference[reference["run"].isin(scores["run"])]
    if reference.empty:
        raise KitError("the reference has none of these runs, which are named by their parameters")
    try:
        cells = scores.merge(reference, "outer", KEYS, suffixes=("", "_reference"), validate="one_to_one")
    except pd.errors.MergeError:
        raise KitError("scores.csv of the reference has two values for one cell of one run") from None
    return cells.assign(verdict=verdicts(cells))


def verdicts(cells: pd.DataFrame, rounding: Any = 0.0) -> Any:
    """A verdict for each row, from value, low and high of both sides."""
    value, low, high, other, other_low, other_high = (cells[name] for name in (*NUMBERS, *REFERENCE))
    alike = (value - other).abs() <= rounding + ROUNDING
    within = other.between(low, high) | value.between(other_low, other_high)
    return np.select([other.isna(), value.isna(), alike, within], ["", MISSING, SAME, WITHIN], OFF)


def print_differences(runs: Sequence, reference: Path) -> None:
    """In what the runs' records differ from the reference's: most often this is why a cell does."""
    lines: Counter[str] = Counter()
    for run in runs:
        file = paths.runs(reference) / run.record["run"] / stages.RECORD
        theirs = made_with(stages.read_json(file)) if file.is_file() else {}
        for name, value in made_with(run.record).items():
            if theirs.get(name, value) != value:
                lines[f"{name} {value!r} (reference: {theirs[name]!r})"] += 1
    for line, count in lines.items():
        print(f"made with {line}" + (f" in {count} of {len(runs)} runs" if count < len(runs) else ""))


def made_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """What can change a score, of a run's provenance."""
    inputs = {name: record.get(name) for name in ("device", "data_hash", "base_hash")}
    return {**record.get("versions", {}), **record.get("parameters", {}), **record.get("bits", {}), **inputs}


# -- against what was printed -----------------------------------------------------------------------------------


def published_people(runs: Sequence) -> list:
    """The runs under protocol ``upstream``, which is what others ran, all where there is none. Raises KitError for runs
    about other people than the published ones."""
    for run in runs:
        if run.record["notes"].get("source") != "official":
            raise KitError(f"{run.id} is not about the published people, so published figures say nothing about it")
    upstream = [run for run in runs if run.record["parameters"]["protocol"] == "upstream"]
    if not upstream:
        print("No run under protocol upstream, which is what others ran: the levels may differ for that reason.")
    return upstream or list(runs)


def compare_published(scores: pd.DataFrame) -> pd.DataFrame:
    """The cells of ``scores``, first the anchor's (once more), with ``published`` (all that was printed for it, in the
    kit's unit), ``source`` (of the figure that agrees best) and ``verdict``; all three empty where nothing was printed.
    Raises KitError where nothing has a counterpart."""
    from mllmu_nb.reporting import published

    anchor = pd.DataFrame([published.ANCHOR_CELL]).assign(value=published.ANCHOR, rounding=published.ANCHOR_WITHIN)
    anchor = anchor.assign(source=f"anchor; {published.ANCHOR_SOURCE}")
    cells = [_best(scores, anchor, exact=True), _best(scores, published.cells(published.load()))]
    if cells[0].empty:
        print(f"not measured: the anchor, {published.ANCHOR:.4f} ({published.ANCHOR_SOURCE})")
    cells = pd.concat(cells, ignore_index=True)
    if not cells["verdict"].any():
        raise KitError("no cell of these runs was published: figures are known for LLaVA-1.5-7B at 5 and 10 %")
    return cells


def _best(scores: pd.DataFrame, printed: pd.DataFrame, exact: bool = False) -> pd.DataFrame:
    """``scores`` merged with ``printed`` (value, rounding, source), a row a cell: the figure that agrees best. With
    ``exact`` only the cells that were printed, and intervals do not count."""
    keys = [name for name in printed if name not in ("value", "rounding", "source")]
    cells = scores.assign(cell=range(len(scores))).merge(
        printed, "inner" if exact else "left", keys, suffixes=("", "_reference")
    )
    other = cells["value_reference"]
    cells = cells.assign(low_reference=other, high_reference=other, away=(other - cells["value"]).abs())
    figures = pd.Series([f"{value:.4f}" if value == value else "" for value in other], cells.index, dtype=str)
    published = figures.groupby(cells["cell"]).transform(lambda group: " ".join(sorted(group)))
    judged = cells.assign(low=cells["value"], high=cells["value"]) if exact else cells
    cells = cells.assign(verdict=verdicts(judged, cells["rounding"]), published=published)
    order = cells.assign(rank=cells["verdict"].map([SAME, WITHIN, OFF, ""].index)).sort_values(["cell", "rank", "away"])
    return order.drop_duplicates("cell")[[*scores, "published", "source", "verdict"]].fillna({"source": ""})
