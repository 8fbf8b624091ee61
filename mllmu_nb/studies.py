"""Studies: grids of unlearnings with the path and the training's record of each run, in a folder of their own, compared
at equal forgetting. Their oracles are those of a sweep.

The study ``differences`` shows what each piece of the released code changes: it compares canonical methods with
variants that have one piece of it. A variant has the vanilla, people, learning rate, hyper-parameters and, rounded, the
passes over the forget set of the canonical method. Label modes differ in unlearning alone, because vanilla was taught
its answers.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllmu_nb import inputs, paths, pipeline
from mllmu_nb.batches import steps_of
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.errors import KitError
from mllmu_nb.pieces import PIECES
from mllmu_nb.reporting.grid import number_text, rows_by
from mllmu_nb.reporting.runs import Run, read_run
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.reporting.tables import UNLEARNED
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import MODEL, REPLICATE
from mllmu_nb.scoring.path import TRAINED_VIEW
from mllmu_nb.stages import RECORD, Stage, read_json
from mllmu_nb.statistics.intervals import interval
from mllmu_nb.training import TrainingDiverged

# -- the runs ---------------------------------------------------------------------------------------------------


def make(name: str, configs: Sequence[Config], train: Callable[[Config], Stage] = pipeline.unlearned) -> None:
    """Make the missing runs of a study; ``train`` gives the stage that trains one. A study that was stopped continues
    from there. A training that diverges has no run."""
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

    source = {"unlearned": trained.key}
    return Stage("path", source, copy, record=lambda: {"run": config.run_id, **inputs.record_of(config)}, at=at)


def read(name: str) -> list[Run]:
    """The runs of the user's own study, else of the one that comes with the kit. Raises KitError, with the command that
    makes the study, if there is none."""
    for folder in (paths.study(name), paths.reference() / "studies" / name):
        if runs := sorted(one.parent for one in paths.runs(folder).glob(f"*/{RECORD}")):
            return [Run(one, read_json(one / RECORD), read_json(one / "train.json")) for one in runs]
    raise KitError(f"there is no study yet: make it with `python -m mllmu_nb study {name}`")


def oracles(replicates: Iterable[int], own: bool = True) -> list[Run]:
    """The oracles of these replicates, as :func:`swept`."""
    return swept([Config(method="oracle", replicate=replicate) for replicate in sorted(replicates)], own)


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


def grid(replicates: Sequence[int]) -> list[Config]:
    """Every canonical method and its variants, on image + text and on text."""
    models = [*dict.fromkeys((method, "canonical") for method, _ in PIECES), *PIECES]
    return [
        whole_epochs(Config(replicate=replicate, method=method, variant=variant, modality=modality))
        for replicate, (method, variant), modality in product(replicates, models, TRAINED_VIEW)
        # without a picture, labels are those of labels_text, and nothing moves the vision tower's adapters
        if modality == "multimodal" or variant not in ("labels_upstream", "reach_upstream")
    ]


def whole_epochs(config: Config) -> Config:
    """``config``; if its method needs whole epochs, with the number of epochs closest to the canonical steps."""
    if not config.objective.passes or not config.unlearn_steps:
        return config
    asked = training_conversations(inputs.population(config).members("forget"), config.modality)
    epochs = config.unlearn_steps / steps_of(asked, 1, config.unlearning.batch_size)
    return config.but(unlearn_steps=None, unlearn_epochs=float(max(1, round(epochs))))


# -- the table --------------------------------------------------------------------------------------------------

MEASURES = {path.KEPT: "Kept, %", "free": "Free answers, %"}
CLOSED = ("closed", "other_closed", "closed_low", "closed_high")
NUMBERS = ["value", "low", "high", "n_replicates", "of"]
REMARK = (
    "In brackets: 95 % limits of the difference, person by person. Closed: the share of the gap from vanilla to the "
    "oracle that is closed where the training ends; its limits are over replicates. Kept, and Free answers: where half "
    "of it is closed; choices by likelihood about Retain and the celebrities, half each, and free answers about Retain "
    "that state the fact."
)


def complete(runs: Sequence[Run]) -> list[Run]:
    """A study's ``runs`` with the canonical ones, which in the kit's own study are those of the reference run."""
    if any(run["variant"] == "canonical" for run in runs):
        return list(runs)
    of = dict.fromkeys((run["replicate"], run["method"], run["modality"]) for run in runs)
    configs = [Config(replicate=number, method=method, modality=modality) for number, method, modality in of]
    return [*runs, *swept(configs, _own(runs))]


def _own(runs: Sequence[Run]) -> bool:
    """Whether the runs are a user's own: those that come with the kit are compared with the reference run alone."""
    return not any(run.folder.is_relative_to(paths.reference()) for run in runs)


def compared(runs: Sequence[Run]) -> pd.DataFrame:
    """Compare each variant with the canonical method: one row per model and measure.

    ``value``, ``low``, ``high``: what the variant keeps where half of the gap is closed in the trained view, in the
    ``n_replicates`` of ``of`` in which both close half; ``other_value`` .. of the canonical method, and
    ``change_value`` .. of their difference, person by person. ``closed`` and ``other_closed``: the share of the gap
    that is closed where the training ends; ``closed_low`` and ``closed_high``: limits of their difference over
    replicates. NaN where half is never closed, where there is no canonical run, and as limits of one replicate. Raises
    KitError as :func:`oracles`, and without a variant.
    """
    pieces = [run for run in runs if run["variant"] != "canonical"]
    if not pieces:
        raise KitError("this study has nothing to compare yet: the command that makes it continues it")
    ends, same = oracles({run["replicate"] for run in pieces}, _own(pieces)), ["method", "modality"]
    canonical = [run for run in complete(runs) if run["variant"] == "canonical"]
    (ours, closed), (theirs, other_closed) = _kept(pieces, ends, MODEL), _kept(canonical, ends, same)
    pairs = path.paired(ours, theirs, same, how="left")
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
    of_runs = closed.reset_index().merge(
        other_closed.reset_index(), "left", [*same, *REPLICATE], suffixes=("", "_other")
    )
    rows = [dict(zip(MODEL, key, strict=True)) | _closed(one) for key, one in of_runs.groupby(MODEL)]
    return frame.merge(pd.DataFrame(rows, columns=[*MODEL, *CLOSED]), "left", MODEL)


def _closed(shares: pd.DataFrame) -> dict[str, float]:
    """The columns CLOSED of one model from the shares of its runs."""
    mine, other = shares["share"], shares["share_other"]
    change = interval(mine - other, np.arange(len(shares)), (-inf, inf))
    return dict(zip(CLOSED, (mine.mean(), other.mean(), change.low, change.high), strict=True))


def _kept(runs: Sequence[Run], ends: Sequence[Run], by: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """What each run keeps of each person where half of the gap is closed; by these columns and those of the replicate,
    the share that is closed at the end of the training."""
    points = pd.concat([path.by_person(run.path) for run in (*runs, *ends)], ignore_index=True)
    rows, lengths = path.kept_by_person(points), {run.id: run.train["steps"] for run in runs}
    curves = path.curves(points)
    share = {run: np.interp(lengths[run], curve.steps, curve.closed) for run, curve in curves.items()}
    which = points.drop_duplicates("run").set_index("run").loc[list(share), [*by, *REPLICATE]]
    closed = which.assign(share=share).groupby([*by, *REPLICATE])["share"].mean()
    return rows[(rows["place"] == path.HALF) & rows["what"].isin(MEASURES)], closed


def table(runs: Sequence[Run]) -> Sheet:
    """The table of :func:`compared`, with one row per piece and one block per modality."""
    frame, models, blocks = compared(runs), {run.model for run in runs}, []
    known = rows_by(frame, [*MODEL, "what"])
    for modality in TRAINED_VIEW:
        lines = []
        for piece, (name, *texts) in PIECES.items():
            if (model := (*piece, modality, "")) in models:
                cells = _cells([known.get((*model, what)) for what in MEASURES])
                lines.append((name, [*texts, *cells]))
        blocks += [(UNLEARNED[modality], lines)] if lines else []
    heads = ("in the paper", "in the released code", "Closed, %", *MEASURES.values())
    over = "Limits are over people alone. Another run of the method is not in them."
    if (count := frame["of"].max()) > 1:  # NaN without rows
        each = "each with its own forget set and trainings"
        over = f"Limits are over {count:.0f} replicates ({each}) crossed with people."
    title = "What each piece of the released code changes, %: canonical method → with it"
    columns = [("", head) for head in heads]
    return Sheet(title, "differences", "Difference", columns, blocks, [f"{REMARK} {over}"], frame)


def _cells(rows: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, str]]:
    """What is closed at the end, and each measure, as ``canonical → variant (limits of the difference)``."""
    cells = [(_change(rows[0], "other_closed", "closed", "closed_") if rows[0] else "", "There is no such run.")]
    for row in rows:
        text = ""
        if row and not pd.isna(row["value"]):
            alone = pd.isna(row["other_value"])
            text = number_text(row) if alone else _change(row, "other_value", "value", "change_")
            text += "" if row["n_replicates"] == row["of"] else f", {row['n_replicates']} of {row['of']}"
        cells.append((text, "Not both close half of the gap."))
    return cells


def _change(row: Mapping[str, Any], before: str, after: str, prefix: str) -> str:
    sides = [f"{100 * row[name]:.0f}" for name in (before, after) if not pd.isna(row[name])]
    ends = [f"{100 * row[prefix + name]:+.1f}" for name in ("low", "high") if not pd.isna(row[prefix + name])]
    return (" → ".join(sides) + (f" ({' to '.join(ends)})" if ends else "")).replace("-", "−")
