"""Every method with the settings that were searched for it on other people: do the methods keep their order?

The reference run takes the learning rate and weight in the middle of each grid. ``tools/settings.py`` searched better
ones on two other populations, and its choices come with the kit. This study unlearns with them and stores the paths,
in ``studies/searched``. Vanilla, the oracle and the runs with the middle are those of a sweep.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mllmu_nb import inputs, paths, pipeline, studies
from mllmu_nb.config import Config
from mllmu_nb.errors import KitError
from mllmu_nb.reporting.grid import LIMITS, number_text, rows_by
from mllmu_nb.reporting.runs import Run, label, read_run
from mllmu_nb.reporting.sheet import Sheet
from mllmu_nb.reporting.tables import UNLEARNED
from mllmu_nb.scoring import path
from mllmu_nb.scoring.frames import MODEL
from mllmu_nb.stages import RECORD, Stage, read_json

CHOICES = "settings_search.json"  # in the reference's folder
MEASURES = {path.KEPT: "Kept %", "free": "Free answers %"}


def choices() -> list[dict[str, Any]]:
    """The parameters that were chosen for each method and modality."""
    rows = read_json(paths.reference() / CHOICES)["choices"]
    return [
        {"method": row["method"], "variant": row["variant"], "modality": row["modality"]}
        | {"unlearn_lr": row["lr"], "unlearn_steps": row["steps"]}
        | ({row["weight_name"]: row["weight"]} if row["weight_name"] else {})
        for row in rows
    ]


def grid(replicates: Sequence[int]) -> list[Config]:
    """One run of each choice in each replicate."""
    return [Config.from_parameters({"replicate": one, **choice}) for one, choice in product(replicates, choices())]


def make(configs: Sequence[Config]) -> None:
    """Store the path of each run, made if needed (:func:`mllmu_nb.studies.make`)."""
    studies.make("searched", configs, stored)


def stored(config: Config, at: Path) -> Stage:
    """The stage that copies the path and the training's record, without the adapter."""
    trained = pipeline.unlearned(config)

    def copy(folder: Path) -> None:
        for name in ("path.parquet", "train.json"):
            shutil.copyfile(trained.get() / name, folder / name)

    def record() -> dict[str, Any]:
        return {"run": config.run_id, **inputs.record_of(config)}

    return Stage("path", {"unlearned": trained.key}, copy, record=record, at=at)


def read() -> list[Run]:
    """The runs of the user's own study, else those that come with the kit. Raises KitError if there are none."""
    folders = sorted(paths.runs(studies.folder_of("searched")).glob("*/"))
    return [Run(one, read_json(one / RECORD), read_json(one / "train.json")) for one in folders]


def beside(replicates: Sequence[int]) -> list[Run]:
    """The oracles of the replicates, and the canonical methods with the middle of their grids. Raises KitError, with
    the command that makes them, for an oracle that does not exist."""
    models = [{k: one[k] for k in ("method", "modality")} for one in choices() if one["variant"] == "canonical"]
    runs = []
    for replicate, model in product(replicates, [{"method": "oracle"}, *models]):
        folder = pipeline.reference(config := Config.from_parameters({"replicate": replicate, **model}))
        if folder:
            runs.append(read_run(folder))
        elif config.method == "oracle":
            raise KitError(f"there is no oracle of replicate {replicate}: `mllmu-nb sweep` of its replicate makes it")
    return runs


def kept_by_person(runs: Sequence[Run], oracles: Sequence[Run]) -> pd.DataFrame:
    """What each run keeps of each person where half of the gap is closed, in the view that was trained."""
    points = pd.concat([path.by_person(run.path) for run in (*runs, *oracles)], ignore_index=True)
    rows = path.kept_by_person(points)
    return rows[(rows["place"] == path.HALF) & rows["what"].isin(MEASURES)]


def compared(runs: Sequence[Run], others: Sequence[Run]) -> pd.DataFrame:
    """One row per model and measure: ``value``, ``low``, ``high``, ``n_replicates`` and ``of`` with the searched
    settings; the same with the prefix ``middle_``; and ``change_``, searched minus middle, of the replicates in which
    both close half of the gap, all from -1 to 1. ``runs``: of the study; ``others``: from :func:`beside`."""
    oracles = [run for run in others if run["method"] == "oracle"]
    middle = [run for run in others if run["method"] != "oracle"]
    sides = [kept_by_person(some, oracles) for some in (runs, middle)]
    key, numbers = [*MODEL, "what"], ["value", "low", "high", "n_replicates", "of"]
    ours, theirs = (path.kept(side).set_index(key)[numbers] for side in sides)
    changed = path.kept_difference(*sides, same=MODEL).set_index(key)[numbers[:3]]
    return ours.join(theirs.add_prefix("middle_")).join(changed.add_prefix("change_")).reset_index()


def table() -> Sheet:
    """The table of :func:`compared`, one block per modality. Raises KitError as :func:`read` and :func:`beside`."""
    runs = read()
    replicates = sorted({run["replicate"] for run in runs})
    frame = compared(runs, beside(replicates))
    settings = {run.model: _settings(run) for run in runs}
    rows = rows_by(frame, [*MODEL, "what"])
    blocks = []
    for modality in path.TRAINED_VIEW:
        models = [model for model in settings if model[2] == modality]
        cells = [[settings[model], *_cells(rows, model)] for model in models]
        names = [label(model[0], model[1]) for model in models]
        blocks.append((UNLEARNED[modality], list(zip(names, cells, strict=True))))
    sides = ("searched", "middle", "difference")
    columns = [("", "settings: rate, weight, steps"), *((head, side) for head in MEASURES.values() for side in sides)]
    title = "Kept where half the gap is closed: searched settings and the middle of the grids"
    remark = (
        f"{len(replicates)} replicates of LLaVA at 10 %. Kept: choices by likelihood about Retain and Celebrity, each "
        "counted half. Free answers: about Retain people, whether they state the fact. Difference: searched minus "
        f"middle, person by person. {LIMITS}"
    )
    return Sheet(title, "searched", "Method", columns, blocks, [remark], frame)


def _settings(run: Run) -> tuple[str, str]:
    weights = ", ".join(f"{name} {value:g}" for name, value in run.parameters["settings"].items())
    return ", ".join(filter(None, [f"{run.parameters['unlearn_lr']:g}", weights, str(run.train["steps"])])), ""


def _cells(rows: Mapping[tuple, Mapping[str, Any]], model: tuple) -> Iterator[tuple[str, str]]:
    for what, side in product(MEASURES, ("", "middle_", "change_")):
        row = rows.get((*model, what), {})
        number = {name: row.get(side + name) for name in ("value", "low", "high")}
        yield number_text(number, signed=side == "change_"), "Not reached, or not in the reference run."
