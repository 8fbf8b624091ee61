"""``python -m mllmu_nb verify [configs/miniature.yaml]``: are these the scores that others got?

Every cell of the scores gets a verdict:

- ``same``: the value is the reference's, to rounding.
- ``within interval``: both are point estimates with a 95 % interval, and the reference's value lies in the new interval
  or the new value in the reference's. The intervals allow for other people and questions, while a rerun asks the same
  ones: this is the weaker word.
- ``off``: neither.
- ``missing``: the reference has the cell and the run lacks it.

The reference is the run that comes with the project, or the folder named by ``--against``. At paper scale it is what
others printed (:mod:`mllmu_nb.reporting.published`): first the anchor, then every cell that somebody printed. Printed
figures have no interval and sources differ in level, so a cell is ``off`` where none of its sources lies in the new
interval. A cell that nobody printed has no verdict. Files of a run that are gone or changed are named first.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllmu_nb import paths, pipeline, stages
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError

if TYPE_CHECKING:  # loaded where they are used: asking for the usage needs neither
    import pandas as pd

    from mllmu_nb.reporting.runs import Run

SUMMARY = "compare scores, cell by cell, with the reference run or with published figures"
SAME, WITHIN, OFF, MISSING = "same", "within interval", "off", "missing"
ROUNDING = 1e-9  # of a mean that was written to a file and read back
NUMBERS = ["value", "low", "high"]


def arguments(parser: argparse.ArgumentParser) -> None:
    about = "configuration file whose runs are compared (default: every run at the miniature's scale)"
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
    if options.rerun and not options.config:
        raise KitError("--rerun needs the configuration file of what to make anew, such as configs/miniature.yaml")
    if options.run and (options.config or options.rerun):
        raise KitError("--run names one finished run: give it without a configuration and without --rerun")
    configs = sweep.cells(sweep.read(options.config)) if options.config else []
    kept = paths.cache()
    if options.rerun and not _rerun(options.config):
        return 1
    folders = [options.run] if options.run else chosen(configs)
    problems = [problem for folder in folders for problem in damages(folder)]
    print(*problems, sep="\n", end="\n" * bool(problems))
    runs = read([folder for folder in folders if stages.is_whole(folder)])
    scale = runs[0].record["scale"]
    if scale == "paper" and not options.against:
        verdicts = compare_published(scores_of(published_people(runs)))
        _print_published(verdicts)
    else:
        reference = options.against or paths.reference()
        verdicts = compare(scores_of(runs), read_scores(reference))
        _print_differences(runs, reference, verdicts)
        _print_cells(verdicts)
    every_cell = paths.writable(kept) / f"verify-{scale}.csv"
    verdicts.to_csv(every_cell, index=False)
    counts = Counter(verdict for verdict in verdicts["verdict"] if verdict)
    print(f"{counts.total()} cells: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())} ({every_cell})")
    return 1 if problems or counts[OFF] or counts[MISSING] else 0


# -- what is compared -------------------------------------------------------------------------------------------


def _rerun(config: Path) -> bool:
    """Sweeps ``config`` in an empty folder, where results are looked for from then on. Whether all went well."""
    folder = paths.cache() / "rerun"
    shutil.rmtree(folder, ignore_errors=True)
    os.environ[paths.OUT] = str(folder)
    return sweep.main(argparse.Namespace(config=config, ratios=None, jobs=None, shard=None)) == 0


def chosen(configs: Sequence[Config]) -> list[Path]:
    """Folders of one's own runs: those of ``configs``, else all of the miniature's, else those of the reference."""
    if configs:
        folders = {config.run_id: pipeline.run_folder(config) for config in configs}
        for name in (name for name, folder in folders.items() if not folder.is_dir()):
            print(f"not made here: {name}")
        return [folder for folder in folders.values() if folder.is_dir()]
    for results in (paths.results("miniature"), paths.reference()):
        if folders := sorted(path for path in paths.runs(results).glob("*") if path.is_dir()):
            return folders
        print(f"no run in {results}")
    return []


def damages(folder: Path) -> list[str]:
    """What is wrong with the files of a run, by its record; a line each."""
    try:
        written = stages.read_json(folder / stages.RECORD)["files"]
        now = stages.digests(folder)
        states = {name: MISSING if name not in now else "altered" for name in written if now.get(name) != written[name]}
    except (KitError, KeyError, TypeError):
        return [f"{folder.name}: {stages.RECORD} is missing or altered"]
    return [f"{folder.name}: {name} is {state}" for name, state in states.items()]


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs in ``folders``. Raises KitError when there is none."""
    from mllmu_nb.reporting.runs import read_run

    if not folders:
        raise KitError("there is no whole run to compare: make it again with python -m mllmu_nb sweep")
    return [read_run(folder) for folder in folders]


def scores_of(runs: Sequence[Run]) -> pd.DataFrame:
    """The rows of scores.csv, from the stored answers."""
    from mllmu_nb.reporting.runs import items_of
    from mllmu_nb.scoring.score import run_scores

    return run_scores(items_of(runs))


# -- against a run ----------------------------------------------------------------------------------------------


def read_scores(folder: Path) -> pd.DataFrame:
    """scores.csv of ``folder``."""
    import pandas as pd

    try:
        scores = pd.read_csv(folder / "scores.csv", keep_default_na=False)
        lacking = [column for column in ("method", "set", "metric", *NUMBERS) if column not in scores]
        if not lacking:
            return scores.assign(**{name: pd.to_numeric(scores[name]) for name in NUMBERS})
    except OSError:
        raise KitError(f"there is no scores.csv in {folder}: name a folder that holds one by --against") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise KitError(f"scores.csv of the reference in {folder} cannot be read: {reason}") from None
    raise KitError(f"scores.csv of the reference in {folder} lacks the columns {', '.join(lacking)}")


def compare(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """One row a cell of the models in ``scores``: its keys, value, low, high, the same of the reference, the verdict.

    Runs are matched by their id where the reference has all of them, else by what scores.csv says of them: then
    parameters that it does not hold may differ. ``verdict`` is empty where the reference lacks the cell. Raises
    KitError when it has none of the models, or when two cells of one side would be compared with one of the other.
    """
    import numpy as np
    import pandas as pd

    from mllmu_nb.scoring.frames import CELL
    from mllmu_nb.scoring.score import RUN_KEYS

    if "run" not in reference:
        reference = reference.assign(run="")
    names = [name for name in RUN_KEYS if name in reference and name != "run"]
    models = ["run", *names] if set(scores["run"]) <= set(reference["run"]) else names
    reference = reference.assign(run_reference=reference["run"]).merge(scores[models].drop_duplicates(), on=models)
    if reference.empty:
        raise KitError("the reference has none of these models: look at base model, ratio, draw, method and seed")
    keys = [*models, *CELL, "metric"]
    theirs, mine = reference[[*keys, "run_reference", *NUMBERS]], scores[[*dict.fromkeys(["run", *keys]), *NUMBERS]]
    try:
        cells = mine.merge(theirs, "outer", keys, sort=False, suffixes=("", "_reference"), validate="one_to_one")
    except pd.errors.MergeError:
        raise KitError("several cells bear the same name: name the runs to compare by a configuration") from None
    cells["run"] = cells["run"].fillna(cells.groupby(names)["run"].transform("first"))  # of a cell that is missing
    value, low, high = (cells[name] for name in NUMBERS)
    other, other_low, other_high = (cells[f"{name}_reference"] for name in NUMBERS)
    alike = np.isclose(value, other, rtol=0, atol=ROUNDING)
    within = other.between(low, high) | value.between(other_low, other_high)
    cells["verdict"] = np.select([other.isna(), value.isna(), alike, within], ["", MISSING, SAME, WITHIN], OFF)
    return cells


def _print_differences(runs: Sequence[Run], reference: Path, verdicts: pd.DataFrame) -> None:
    """In what the runs' records differ from the reference's: most often this is why a cell does."""
    records = {run["run"]: run.record for run in runs}
    lines: Counter[str] = Counter()
    for own, other in verdicts[["run", "run_reference"]].dropna().drop_duplicates().itertuples(index=False):
        file = paths.runs(reference) / other / stages.RECORD
        lines.update(differences(records[own], stages.read_json(file)) if file.is_file() else [])
    for line, count in lines.items():
        print(f"made with {line}" + (f" in {count} of {len(runs)} runs" if count < len(runs) else ""))


def differences(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """How a run's provenance differs from another's in what can change a score, one text a difference."""
    lines = []
    for group in ("versions", "parameters", "bits"):
        mine, theirs = record.get(group, {}), other.get(group, {})
        names = [name for name in mine if name in theirs and mine[name] != theirs[name]]
        lines += [f"{name} {mine[name]!r} (reference: {theirs[name]!r})" for name in names]
    names = [name for name in ("device", "data_hash", "base_hash") if record.get(name) != other.get(name)]
    return lines + [f"{name} {record.get(name)!r} (reference: {other.get(name)!r})" for name in names]


def _print_cells(verdicts: pd.DataFrame) -> None:
    """A line a run, how many of its cells have which verdict; then a line for each cell that is off or missing."""
    print(f"{'same':>6} {'within':>7} {'off':>5} {'missing':>8} {'new':>5}  run")
    for run, cells in verdicts.groupby("run", sort=False):
        counts, one = Counter(cells["verdict"]), cells.iloc[0]
        numbers = f"{counts[SAME]:6} {counts[WITHIN]:7} {counts[OFF]:5} {counts[MISSING]:8} {counts['']:5}"
        print(f"{numbers}  {run}: {one['base_model']}, {one['forget_ratio']} %")
    for cell in verdicts[verdicts["verdict"].isin([OFF, MISSING])].itertuples():
        where = " ".join(filter(None, (cell.run, cell.set, cell.task, cell.view, cell.scoring, cell.metric)))
        mine = "no value" if cell.verdict == MISSING else f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
        theirs = f"{cell.value_reference:.3f} [{cell.low_reference:.3f}, {cell.high_reference:.3f}]"
        print(f"{cell.verdict}: {where}: {mine}, reference {theirs}")


# -- against what was printed -----------------------------------------------------------------------------------


def published_people(runs: Sequence[Run]) -> list[Run]:
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
    kit's unit), ``source`` (of the nearest figure) and ``verdict``; all three empty where nothing was printed.

    The anchor is ``same`` where it equals its value, ``within 0.005`` where it is that close, else ``off``, and has no
    value where it was not measured. Raises KitError where nothing has a counterpart.
    """
    import numpy as np
    import pandas as pd

    from mllmu_nb.reporting import published

    anchor = scores[(scores[list(published.ANCHOR_CELL)] == pd.Series(published.ANCHOR_CELL)).all(axis=1)]
    away = (anchor["value"] - published.ANCHOR).abs()
    close = [away <= ROUNDING, away <= published.ANCHOR_WITHIN]
    verdict = np.select(close, [SAME, f"within {published.ANCHOR_WITHIN}"], OFF)
    anchor = anchor.assign(verdict=verdict) if len(anchor) else pd.DataFrame([published.ANCHOR_CELL]).assign(verdict="")
    anchor = anchor.assign(published=repr(published.ANCHOR), source=f"anchor; {published.ANCHOR_SOURCE}")

    printed = published.cells(published.load())
    names = list(printed.columns[: printed.columns.get_loc("value")])
    cells = scores.assign(cell=range(len(scores))).merge(printed, "left", names, suffixes=("", "_printed"))
    away = (cells["value_printed"] - cells["value"]).abs()
    agrees = cells["value_printed"].between(cells["low"], cells["high"])
    choices = [away.isna(), away <= cells["rounding"] + ROUNDING, agrees]
    cells = cells.assign(verdict=np.select(choices, ["", SAME, WITHIN], OFF), away=away)
    figures = [f"{value:.4f}" if value == value else "" for value in cells["value_printed"]]
    cells["published"] = pd.Series(figures).groupby(cells["cell"]).transform(lambda group: " ".join(sorted(group)))
    agreement = cells["verdict"].map({SAME: 0, WITHIN: 1, OFF: 2, "": 3})  # a cell is off where all its sources are
    cells = cells.assign(agreement=agreement).sort_values(["cell", "agreement", "away"]).drop_duplicates("cell")
    verdicts = pd.concat([anchor, cells.fillna({"source": ""})[[*scores, "published", "source", "verdict"]]])
    if not verdicts["verdict"].any():
        raise KitError("no cell of these runs was published: figures are known for LLaVA-1.5-7B at 5 and 10 %")
    return verdicts.reset_index(drop=True)


def _print_published(verdicts: pd.DataFrame) -> None:
    for cell in verdicts[verdicts["published"] != ""].itertuples():
        where = (cell.forget_ratio, cell.method, cell.modality, cell.set, cell.task, cell.view, cell.metric)
        values = f"{cell.value:.4f} [{cell.low:.4f}, {cell.high:.4f}], {cell.published} ({cell.source})"
        print(f"{cell.verdict or 'not measured'}: {' '.join(map(str, where))}: {values}")
