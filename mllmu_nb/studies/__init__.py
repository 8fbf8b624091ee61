"""Studies: methods with other pieces of code beside the canonical ones, compared at equal forgetting.

A study is a grid of runs in a folder of its own, which has the path and the training's record of each run. Its oracles
are those of a sweep.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb import inputs, paths, pipeline
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.grid import number_text, rows_by
from mllmu_nb.reporting.runs import Run, read_run
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.reporting.tables import UNLEARNED
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import MODEL, PEOPLE
from mllmu_nb.stages import RECORD, Stage, read_json

MEASURES = {path.KEPT: "Kept, %", "free": "Free answers, %"}
NUMBERS = ["value", "low", "high", "n_replicates", "of"]
REMARK = (
    "In brackets: 95 % limits of the difference, person by person. Closed: the share of the gap from vanilla to the "
    "oracle that is closed where the training ends. Kept, and Free answers: where half of it is closed; choices by "
    "likelihood about Retain and the celebrities, half each, and free answers about Retain that state the fact."
)


def make(name: str, configs: Sequence[Config], train: Callable[[Config], Stage] = pipeline.unlearned) -> None:
    """Make the missing runs of a study; ``train`` gives the stage that trains one. A study that was stopped continues
    from there. A training that diverges has no run."""
    from mllmu_nb.training import TrainingDiverged

    folder = paths.study(name)
    inputs.write_people(configs[0], paths.people(folder))
    for number, config in enumerate(configs, start=1):
        print(f"[{number}/{len(configs)}] {config.run_id}", flush=True)
        try:
            stored(config, train(config), paths.runs(folder) / config.run_id).get()
        except TrainingDiverged as reason:
            print(f"    {reason}")


def stored(config: Config, trained: Stage, at: Path) -> Stage:
    """The stage that copies the path and the record of a training, without its adapter."""

    def copy(folder: Path) -> None:
        for name in ("path.parquet", "train.json"):
            shutil.copyfile(trained.get() / name, folder / name)

    def record() -> dict[str, Any]:
        return {"run": config.run_id, **inputs.record_of(config)}

    return Stage("path", {"unlearned": trained.key}, copy, record=record, at=at)


def read(name: str) -> list[Run]:
    """The runs of the user's own study, else of the one that comes with the kit. Raises KitError, with the command that
    makes the study, if there is none."""
    for folder in (paths.study(name), paths.reference() / "studies" / name):
        if runs := sorted(one.parent for one in paths.runs(folder).glob(f"*/{RECORD}")):
            return [Run(one, read_json(one / RECORD), read_json(one / "train.json")) for one in runs]
    raise KitError(f"there is no study yet: make it with `python -m mllmu_nb study {name}`")


def oracles(replicates: Iterable[int], own: bool = True) -> list[Run]:
    """The oracles of these replicates, as :func:`swept`."""
    return swept((Config(method="oracle", replicate=replicate) for replicate in sorted(replicates)), own)


def swept(configs: Iterable[Config], own: bool = True) -> list[Run]:
    """The runs that a sweep has made: the user's ``own`` or those of the reference run. Raises KitError, with the
    command that makes them, if one does not exist."""
    runs = []
    for config in configs:
        if not (folder := pipeline.reference(config, own)):
            name = f"{config.method} of replicate {config.replicate}"
            raise KitError(f"there is no {name}: `mllmu-nb sweep` of its replicate makes it")
        runs.append(read_run(folder))
    return runs


def canonical(runs: Sequence[Run]) -> list[Run]:
    """The canonical runs of the methods, modalities and replicates of ``runs``, with their own settings, by
    :func:`swept`."""
    of = dict.fromkeys((run["replicate"], run["method"], run["modality"]) for run in runs)
    configs = (Config(replicate=number, method=method, modality=modality) for number, method, modality in of)
    return swept(configs, _own(runs))


def _own(runs: Sequence[Run]) -> bool:
    """Whether the runs are a user's own: those that come with the kit are compared with the reference run alone."""
    return not any(run.folder.is_relative_to(paths.reference()) for run in runs)


def compared(runs: Sequence[Run], others: Sequence[Run], same: Sequence[str] = MODEL) -> pd.DataFrame:
    """Compare ``runs`` with those of the ``others`` that agree in the columns ``same``: one row per model and measure.

    ``value``, ``low``, ``high``: what the model keeps where half of the gap is closed in the trained view, in the
    ``n_replicates`` of ``of`` in which both models close half; ``other_value`` .. of the other model, and
    ``change_value`` .. of their difference, person by person. ``closed`` and ``other_closed``: the share of the gap
    that is closed where the training ends. All are shares from -1 to 1; NaN where half is never closed, and where there
    is no other model. Raises KitError as :func:`oracles`, and without ``runs``.
    """
    if not runs:
        raise KitError("this study has nothing to compare yet: the command that makes it continues it")
    same, ends = list(same), oracles({run["replicate"] for run in runs}, _own(runs))
    (ours, closed), (theirs, other_closed) = _kept(runs, ends, MODEL), _kept(others, ends, same)
    on = [*PEOPLE, *same, "place", "what", "set", "person"]
    pairs = ours.merge(theirs[[*on, "value"]], on=on, how="left", suffixes=("", "_other"))
    alone = ~pd.MultiIndex.from_frame(pairs[same]).isin(pd.MultiIndex.from_frame(theirs[same]))
    mine, other = pairs["value"], pairs["value_other"]
    sides = {
        "": path.kept(pairs.assign(value=mine.where(other.notna() | alone))),
        "other_": path.kept(pairs.assign(value=other.where(mine.notna()))),
        "change_": path.kept_difference(ours, theirs, same),
    }
    key = [*MODEL, "what"]
    frames = [side.set_index(key)[NUMBERS].add_prefix(prefix) for prefix, side in sides.items()]
    frame = pd.concat(frames, axis=1).loc[frames[0].index].reset_index()
    return frame.join(closed.rename("closed"), on=MODEL).join(other_closed.rename("other_closed"), on=same)


def _kept(runs: Sequence[Run], ends: Sequence[Run], by: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """What each run keeps of each person where half of the gap is closed; ``by`` these columns, the mean share that
    is closed at the end of the training."""
    points = pd.concat([path.by_person(run.path) for run in (*runs, *ends)], ignore_index=True)
    rows, lengths = path.kept_by_person(points), {run.id: run.train["steps"] for run in runs}
    curves = path.curves(points)
    share = {run: np.interp(lengths[run], curve.steps, curve.closed) for run, curve in curves.items()}
    which = points.drop_duplicates("run").set_index("run").loc[list(share), by]
    closed = which.assign(share=share).groupby(by)["share"].mean()
    return rows[(rows["place"] == path.HALF) & rows["what"].isin(MEASURES)], closed


def sheet(
    name: str, title: str, first: Sequence[str], rows: Mapping[tuple, Sequence[str]], frame: pd.DataFrame
) -> Sheet:
    """Return the table of a study from the ``frame`` of :func:`compared`, one block per modality.

    ``first``: the headings of the name and of the texts beside it; ``rows``: MODEL → name and these texts.
    """
    known, blocks = rows_by(frame, [*MODEL, "what"]), []
    for modality in path.TRAINED_VIEW:
        shown = [(model, texts) for model, texts in rows.items() if model[2] == modality]
        lines = [(name, [*((text, "") for text in texts), *_cells(known, model)]) for model, (name, *texts) in shown]
        blocks += [(UNLEARNED[modality], lines)] if lines else []
    columns = [("", head) for head in (*first[1:], "Closed, %", *MEASURES.values())]
    count = len(frame) and int(frame["of"].max())
    over = f"Limits are over {count} replicates (each with its own forget set and trainings) crossed with people."
    if count < 2:
        over = "Limits are over people alone. Another run of the method is not in them."
    return Sheet(title, name, first[0], columns, blocks, [f"{REMARK} {over}"], frame)


def _cells(known: Mapping[tuple, Mapping[str, Any]], model: tuple) -> list[tuple[str, str]]:
    rows = [known.get((*model, what)) for what in MEASURES]
    shares = [rows[0][name] for name in ("other_closed", "closed")] if rows[0] else []
    ends = " → ".join(f"{100 * share:.0f}" for share in shares if not pd.isna(share))
    return [(ends, "There is no such run."), *((_change(row), "Not both close half of the gap.") for row in rows)]


def _change(row: Mapping[str, Any] | None) -> str:
    if row is None or pd.isna(row["value"]):
        return ""
    reached = "" if row["n_replicates"] == row["of"] else f", {row['n_replicates']} of {row['of']}"
    if pd.isna(row["other_value"]):
        return number_text(row) + reached
    ends = [f"{100 * row[name]:+.1f}" for name in ("change_low", "change_high") if not pd.isna(row[name])]
    limits = f" ({' to '.join(ends)})" if ends else ""
    return f"{100 * row['other_value']:.0f} → {100 * row['value']:.0f}{limits}{reached}".replace("-", "−")
