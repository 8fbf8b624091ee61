"""``python -m mllmu_nb verify [configs/miniature.yaml]``: are these the scores that others got?

Every cell of the scores gets a verdict:

- ``same``: the value is the reference's, to rounding.
- ``within interval``: both are point estimates with a 95 % interval, and the reference's value lies in the new interval
  or the new value in the reference's. The intervals allow for other people and questions, while a rerun asks the same
  ones: this is the weaker word.
- ``off``: neither.
- ``missing``: the reference has the cell and the run lacks it.

The reference is the run that is committed with the project, or the folder named by ``--against``. At paper scale it is
what others printed (:mod:`mllmu_nb.reporting.published`): first the anchor, then every cell that somebody printed.
Printed figures have no interval and sources differ in level, so a cell is ``off`` where none of its sources lies in the
new interval. A cell that nobody printed has no verdict.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllmu_nb import paths, provenance
from mllmu_nb.commands import sweep
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.stages import RECORD, read_json

if TYPE_CHECKING:  # loaded where they are used: asking for the usage needs neither
    import pandas as pd

    from mllmu_nb.reporting import Run

SUMMARY = "compare scores, cell by cell, with the committed reference run or with published figures"
SAME, WITHIN, OFF, MISSING = "same", "within interval", "off", "missing"
ROUNDING = 1e-9  # of a mean that was written to a file and read back


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, nargs="?", help="configuration file whose runs are compared (default: the miniature's)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="a folder with scores.csv, in place of the committed reference"
    )
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="the one run to compare, such as evaluate leaves, in place of all"
    )
    parser.add_argument("--rerun", action="store_true", help="make the runs of the configuration anew, from nothing")


def main(options: argparse.Namespace) -> int:
    """Prints the verdicts. 0 when no cell is off or missing, else 1; KitError where there is nothing to compare."""
    from mllmu_nb.reporting import read_run

    if options.rerun and not options.config:
        raise KitError("--rerun needs the configuration file of what to make anew, such as configs/miniature.yaml")
    if options.run and (options.config or options.rerun):
        raise KitError("--run names one finished run: give it without a configuration and without --rerun")
    configs = sweep.cells(sweep.read(options.config)) if options.config else []
    given = read_run(options.run) if options.run else None
    scale = given["scale"] if given else configs[0].scale if configs else Config.scale
    every_cell = paths.cache() / f"verify-{scale}.csv"
    if options.rerun and not _rerun(options.config):
        return 1
    root, runs = chosen(scale, {config.run_id for config in configs}) if not given else (options.run.parent, [given])
    if scale == "paper" and not options.against:
        verdicts = _published(runs)
    else:
        verdicts = _reference_run(scale, root, runs, options.against)
    paths.writable(every_cell.parent)
    verdicts.to_csv(every_cell, index=False)
    counts = Counter(verdict for verdict in verdicts["verdict"] if verdict)
    print(f"{counts.total()} cells: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())} ({every_cell})")
    return 1 if counts[OFF] or counts[MISSING] else 0


# -- what is compared -------------------------------------------------------------------------------------------


def _rerun(config: Path) -> bool:
    """Sweeps ``config`` in an empty folder, where results are looked for from then on. Whether all went well."""
    folder = paths.cache() / "rerun"
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["MLLMU_NB_OUT"] = str(folder)
    return sweep.main(argparse.Namespace(config=config, ratios=None, jobs=None, shard=None)) == 0


def chosen(scale: str, wanted: set[str]) -> tuple[Path, list[Run]]:
    """The finished runs to compare, and the folder they are in: those of ``wanted``, all where it is empty.

    In a checkout one's own runs lie among the committed ones, and only they are taken. Where there is none, the stored
    answers of the committed ones are scored anew.
    """
    from mllmu_nb.reporting import read_runs, report

    root, _ = report.which_runs(scale)
    runs = [run for run in read_runs(root) if not wanted or run.id in wanted]
    if not runs:
        raise KitError(f"none of the configuration's runs is in {root}: make them with python -m mllmu_nb sweep")
    if root.resolve() == paths.committed_runs(scale).resolve():
        own = [run for run in runs if report.made_here(root / run.id)]
        if not own:
            print("No run was made here: the stored answers of the committed ones are scored anew.")
        runs = own or runs
    for name in sorted(wanted - {run.id for run in runs}):
        print(f"not made here: {name}")
    return root, runs


# -- against a run ----------------------------------------------------------------------------------------------


def _reference_run(scale: str, root: Path, runs: Sequence[Run], against: Path | None) -> pd.DataFrame:
    """The verdicts on ``runs``, printed by model, after what else differs between the two."""
    from mllmu_nb.evaluation import statistics
    from mllmu_nb.reporting import all_items

    reference = _reference(scale, against)
    verdicts = compare(statistics.scores(all_items(runs)), reference)
    _tell_differences(scale, root, runs, against)
    _tell_counts(verdicts)
    _tell_cells(verdicts)
    return verdicts


def _reference(scale: str, against: Path | None) -> pd.DataFrame:
    """``scores.csv`` of ``against``, else as the checkout's commit holds it."""
    import pandas as pd

    text = _of_reference(scale, against, "scores.csv")
    if text is None:
        where = against or f"the commit's results/{scale}"
        raise KitError(f"there is no scores.csv in {where}: name a folder that holds one by --against")
    try:
        found = pd.read_csv(io.StringIO(text))
    except (ValueError, pd.errors.EmptyDataError) as error:
        raise KitError(f"the reference's scores.csv cannot be read: {error}") from None
    lacking = [column for column in ("method", "set", "metric", "value", "low", "high") if column not in found]
    if lacking:
        raise KitError(f"the reference's scores.csv lacks the columns {', '.join(lacking)}")
    return found.fillna({"scoring": ""})


def _of_reference(scale: str, against: Path | None, name: str) -> str | None:
    if against is None:
        return provenance.committed(f"results/{scale}/{name}")
    path = against / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


def compare(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """One row a cell of the models in ``scores``: its keys, value, low, high, the same of the reference, the verdict.

    ``verdict`` is empty where the reference lacks the cell. Raises KitError when it has none of the models, or when
    two cells of one side would be compared with one of the other.
    """
    import numpy as np
    import pandas as pd

    from mllmu_nb.evaluation import statistics

    models = [column for column in statistics.KEYS if column in reference]
    keys = [column for column in (*models, *statistics.CELL, "metric") if column in reference]
    of_these = reference.merge(scores[models].drop_duplicates(), on=models)
    if of_these.empty:
        raise KitError("the reference has none of these models: look at base model, ratio, draw, method and seed")
    numbers = ["value", "low", "high", "n_items"]
    columns = [*keys, *(column for column in numbers if column in reference)]
    try:
        cells = scores[[*keys, *numbers]].merge(
            of_these[columns], on=keys, how="outer", suffixes=("", "_reference"), validate="one_to_one", sort=False
        )
    except pd.errors.MergeError:
        raise KitError("several cells bear the same name: name the runs to compare by a configuration") from None
    value, low, high = cells["value"], cells["low"], cells["high"]
    other, other_low, other_high = (cells[f"{name}_reference"] for name in ("value", "low", "high"))
    alike = np.isclose(value, other, rtol=0, atol=ROUNDING)
    within = other.between(low, high) | value.between(other_low, other_high)
    cells["verdict"] = np.select([other.isna(), value.isna(), alike, within], ["", MISSING, SAME, WITHIN], OFF)
    return cells


def _tell_differences(scale: str, root: Path, runs: Sequence[Run], against: Path | None) -> None:
    """Prints in what the runs' records differ from the reference's: most often this is why a cell does."""
    found: Counter[str] = Counter()
    for run in runs:
        text = _of_reference(scale, against, f"runs/{run.id}/{RECORD}")
        if text and (root / run.id / RECORD).is_file():
            found.update(differences(read_json(root / run.id / RECORD), json.loads(text)))
    for line, count in found.items():
        print(f"made with {line}" + (f" in {count} of {len(runs)} runs" if count < len(runs) else ""))


def differences(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """How a run's provenance differs from another's in what can change a score, one text a difference."""
    lines = []
    for group in ("versions", "parameters"):
        mine, theirs = record.get(group, {}), other.get(group, {})
        names = [name for name in mine if name in theirs and mine[name] != theirs[name]]
        lines += [f"{name} {mine[name]!r} (reference: {theirs[name]!r})" for name in names]
    names = [name for name in ("device", "data_hash", "base_hash") if record.get(name) != other.get(name)]
    return lines + [f"{name} {record.get(name)!r} (reference: {other.get(name)!r})" for name in names]


def _tell_counts(verdicts: pd.DataFrame) -> None:
    """A line a model: how many of its cells have which verdict."""
    from mllmu_nb.reporting import label

    print(f"{'same':>6} {'within':>7} {'off':>5} {'missing':>8} {'new':>5}  model")
    keys = ["base_model", "forget_ratio", "forget_draw", "method", "variant", "modality", "seed"]
    for key, cells in verdicts.groupby(keys, sort=False):
        base, ratio, draw, method, variant, modality, seed = key
        counts = Counter(cells["verdict"])
        numbers = f"{counts[SAME]:6} {counts[WITHIN]:7} {counts[OFF]:5} {counts[MISSING]:8} {counts['']:5}"
        print(f"{numbers}  {label(method, variant, modality)}, {base}, {ratio} %, draw {draw}, seed {seed}")


def _tell_cells(verdicts: pd.DataFrame) -> None:
    """A line for each cell that is off or missing."""
    for cell in verdicts[verdicts["verdict"].isin([OFF, MISSING])].itertuples():
        model = (cell.forget_ratio, cell.method, cell.modality)
        names = (*model, cell.set, cell.task, cell.view, cell.scoring, cell.metric)
        where = " ".join(str(name) for name in names if name != "")
        found = "no value" if cell.verdict == MISSING else f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
        theirs = f"{cell.value_reference:.3f} [{cell.low_reference:.3f}, {cell.high_reference:.3f}]"
        print(f"{cell.verdict}: {where}: {found}, reference {theirs}")


# -- against what was printed -----------------------------------------------------------------------------------


def _published(runs: Sequence[Run]) -> pd.DataFrame:
    """The verdicts on ``runs`` at paper scale, printed: the anchor, then each cell that has a published figure.

    Runs under protocol ``upstream`` are taken where there are any, since that is what others ran. Raises KitError for
    runs whose people are not the published ones, and where no cell has a counterpart.
    """
    from mllmu_nb.evaluation import statistics
    from mllmu_nb.reporting import all_items

    for run in runs:
        if run.data.get("notes", {}).get("source") != "official":
            raise KitError(f"{run.id} is not about the published people, so published figures say nothing about it")
    upstream = [run for run in runs if run["protocol"] == "upstream"]
    if not upstream:
        print("No run under protocol upstream, which is what others ran: the levels may differ for that reason.")
    scores = statistics.scores(all_items(upstream or runs))
    verdicts = compare_published(scores)
    for cell in verdicts[verdicts["published"] != ""].itertuples():
        names = (cell.forget_ratio, cell.method, cell.modality, cell.set, cell.task, cell.view, cell.metric)
        print(
            f"{cell.verdict or 'not measured'}: {' '.join(map(str, names))}: {cell.value:.4f} [{cell.low:.4f}, "
            f"{cell.high:.4f}], {cell.published} ({cell.source})"
        )
    return verdicts


def compare_published(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a cell of ``scores``, the anchor's first: names, value, low, high, ``published`` (all that was printed,
    in the kit's unit), ``source`` (of the nearest one) and ``verdict``, all three empty where nothing was printed.

    The anchor is ``same`` where it equals its value, ``within 0.005`` where it is that close, else ``off``; its row has
    no value and no verdict where it was not measured. Raises KitError where nothing has a counterpart.
    """
    import pandas as pd

    from mllmu_nb.reporting import published

    printed = published.cells(published.load())
    names = list(printed.columns[: printed.columns.get_loc("value")])
    mine = scores.merge(printed, on=names, suffixes=("", "_printed"))
    keys = [*names, *(column for column in ("protocol", "variant", "forget_draw", "seed") if column in scores)]
    rows = list(_anchored(scores))
    for _, cell in mine.groupby(keys, sort=False):
        first, near = cell.iloc[0], cell.loc[(cell["value_printed"] - cell["value"]).abs().idxmin()]
        verdict = OFF
        if cell["value_printed"].between(first["low"], first["high"]).any():
            verdict = WITHIN
        if abs(near["value_printed"] - near["value"]) <= near["rounding"] + ROUNDING:
            verdict = SAME
        told = " ".join(f"{value:.4f}" for value in sorted(cell["value_printed"]))
        rows.append({**first[[*keys, "value", "low", "high"]], "published": told, "source": near["source"]})
        rows[-1]["verdict"] = verdict
    if not any(row["verdict"] for row in rows):
        raise KitError("no cell of these runs was published: figures are known for LLaVA-1.5-7B at 5 and 10 %")
    unknown = scores.merge(printed[names].drop_duplicates(), on=names, how="left", indicator=True)
    unknown = unknown.loc[unknown["_merge"] == "left_only", [*keys, "value", "low", "high"]]
    return pd.concat([pd.DataFrame(rows), unknown.assign(published="", source="", verdict="")], ignore_index=True)


def _anchored(scores: pd.DataFrame) -> Iterable[dict[str, Any]]:
    from mllmu_nb.reporting import published

    chosen = scores
    for name, value in published.ANCHOR_CELL.items():
        chosen = chosen[chosen[name] == value]
    told = {"published": repr(published.ANCHOR), "source": f"anchor; {published.ANCHOR_SOURCE}"}
    for _, cell in chosen.iterrows():
        away = abs(cell["value"] - published.ANCHOR)
        close = f"within {published.ANCHOR_WITHIN}" if away <= published.ANCHOR_WITHIN else OFF
        verdict = SAME if away <= ROUNDING else close
        yield {**cell, **told, "verdict": verdict}
    if chosen.empty:
        nothing = {"modality": "none", "value": float("nan"), "low": float("nan"), "high": float("nan"), "verdict": ""}
        yield {**published.ANCHOR_CELL, **nothing, **told}
